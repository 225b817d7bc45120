"""Suite `baselines`: ours beside the ways that people would otherwise take, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bootpig_rt.backends.base import DenoiseRun
from bootpig_rt.backends.torch_backend import load
from bootpig_rt.benchmarks.bare_unet import BareUNet, Gemm, unet_flops
from bootpig_rt.benchmarks.diffusers_ways import DiffusersWay
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.ours import OurWay, pixel_difference
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.errors import NumericalError

NAME = "baselines"
HELP = "a picture and a step, beside the published way, torch, diffusers and floors"

_ROWS = 3
_EXACT: dict[str, Any] = {"reference_schedule": "exact"}
_OPTIONS = (("spinning", False), ("arena", False), ("portable", True), ("intra_op_threads", 1))
_PICTURES = "picture, image and prompt to pixels"
_STEPS = "step of three rows"


def run(settings: Settings) -> SuiteResult:
    """Check that the ways draw the same, then time them in turn.

    Raises:
        NumericalError: Our picture and that of the published way differ.
    """
    with torch_threads(settings.threads):
        made = _Ways(settings)
        checks = made.check()
        wrong = [check for check in checks if not check.is_ok]
        if wrong:
            raise NumericalError(
                f"{wrong[0].name} is {wrong[0].value:.3g}, expected at most {wrong[0].limit:.3g}; "
                "the ways do not draw the same, so their times mean nothing"
            )
        ways = [way for way in made.pictures() if settings.is_wanted(way.name)]
        rows = time_ways(ways, settings.rounds, progress=settings.progress)
        rows = _with_missing(with_ratios(rows, to="published"), made.missing)
        steps = time_ways(list(made.steps()), settings.rounds, progress=settings.progress)
        steps = with_ratios(steps, to="bare_unet_step")
    return SuiteResult(
        suite=NAME, rows=(*rows, *steps), settings=made.settings(), checks=tuple(checks)
    )


class _Ways:
    """All ways, each loaded with modules of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.missing: dict[str, tuple[str, str]] = {}
        folder, threads = settings.pair, settings.threads
        self.ours = OurWay(folder, threads=threads)
        self.torch = OurWay(folder, backend="torch", threads=threads)
        config = self.ours.pipe.spec.config
        self.config = config
        self.published = PublishedWay(
            load(folder, "cpu", None), steps=config.default_steps, solver=config.default_solver
        )
        self.published.install()
        self.pair = load(folder, "cpu", None).pair
        self.side = config.sample_size_px // self.ours.pipe.spec.vae_scale_factor
        self.tokens = int(self.torch.pipe._tokenizer([""]).shape[1])
        shape: dict[str, Any] = {"side": self.side, "tokens": self.tokens}
        self.bare = BareUNet(
            self.pair.base.unet, settings.work / "graphs", rows=_ROWS, threads=threads, **shape
        )
        self.gemm = Gemm()
        self.flops = unet_flops(self.pair.base.unet, rows=_ROWS, **shape)

    def settings(self) -> dict[str, Any]:
        return {
            "pair": self.config.name,
            "steps": self.config.default_steps,
            "solver": self.config.default_solver,
            "size_px": self.config.sample_size_px,
            "references": 1,
            "rounds": self._settings.rounds,
            "step_gflop": round(self.flops / 1e9, 3),
        }

    def check(self) -> list[Check]:
        """Ours against the published way in pixels, and the bare U-Net against torch."""
        _, theirs = self.published.picture(drawing())
        return [
            Check(
                "pixels: ours, published", pixel_difference(self.ours.cold(**_EXACT), theirs), 0.5
            ),
            Check(
                "pixels: torch backend, published",
                pixel_difference(self.torch.cold(**_EXACT), theirs),
                0.5,
            ),
            Check(
                "bare U-Net: ONNX Runtime, torch", self.bare.difference(self.pair.base.unet), 1e-3
            ),
        ]

    def pictures(self) -> Iterator[Way]:
        """From image and prompt, or prompt alone, to pixels."""
        ours, eager, steps = self.ours, self.torch, self.config.default_steps

        def way(
            name: str, label: str, runtime: str, draw: Callable[[], object], count: float = 1
        ) -> Way:
            return Way(name, label, draw, count, group=_PICTURES, notes={"runtime": runtime})

        torch_name, ort_name = "torch", "ONNX Runtime"
        yield way(
            "published", "published way", torch_name, lambda: self.published.picture(drawing())
        )
        label = "torch without the waste"
        yield way("torch_cold", f"{label}, new subject", torch_name, partial(eager.cold, **_EXACT))
        yield way(
            "torch_warm", f"{label}, known subject", torch_name, partial(eager.warm, **_EXACT)
        )
        compiled = self._compiled()
        if compiled is not None:
            draw = partial(compiled.warm, **_EXACT)
            yield way("torch_compile_warm", "torch.compile, known subject", torch_name, draw)
        plain, adapter = self._diffusers(ip_adapter=False), self._diffusers(ip_adapter=True)
        yield way("diffusers_text_to_image", "diffusers, text to image", torch_name, plain.picture)
        label = "diffusers, IP-Adapter layers (cost only)"
        yield way("diffusers_ip_adapter", label, torch_name, adapter.picture)
        yield way("ours_no_reference", "ours, text to image", ort_name, ours.no_reference)
        yield way("ours_cold", "ours, new subject", ort_name, partial(ours.cold, **_EXACT))
        yield way("ours_warm", "ours, known subject", ort_name, partial(ours.warm, **_EXACT))
        label = "ours, four pictures of a known subject"
        yield way("ours_warm_4_images", label, ort_name, partial(ours.warm, 4, **_EXACT), 4)
        label = f"floor: U-Net alone, {_ROWS} rows, {steps} times"
        yield way("bare_unet", label, ort_name, lambda: [self.bare.launch() for _ in range(steps)])
        label = "floor: its operations at the rate of a matrix product"
        share = self.gemm.flops / (steps * self.flops)
        yield way("arithmetic", label, torch_name, self.gemm.run, share)

    def steps(self) -> Iterator[Way]:
        """Whole runs of a batch that is bound already, per step."""
        count = self.config.default_steps
        yield Way(
            "bare_unet_step",
            "U-Net alone",
            lambda: [self.bare.launch() for _ in range(count)],
            count,
            group=_STEPS,
            notes={"runtime": "ONNX Runtime"},
        )
        yield self._step("ours_step", "ours, with reference, guidance and solver", self.ours)
        for option, value in () if self._settings.is_smoke else _OPTIONS:
            other = OurWay(
                self._settings.pair,
                threads=self._settings.threads,
                backend_options={option: value},
            )
            yield self._step(f"ours_step {option}", f"ours, {option} {value}", other)
        yield self._step("torch_step", "torch backend", self.torch)

    def _step(self, name: str, label: str, ours: OurWay) -> Way:
        backend, batch = ours.recorded_batch(**_EXACT)
        run, count = backend.start(batch), self.config.default_steps
        return Way(
            name,
            label,
            partial(_all_steps, run, count),
            count,
            group=_STEPS,
            values={"rows": float(len(batch.text_of_row))},
            notes={"runtime": backend.name},
        )

    def _diffusers(self, *, ip_adapter: bool) -> DiffusersWay:
        return DiffusersWay(
            load(self._settings.pair, "cpu", None).pair,
            solver=self.config.default_solver,
            steps=self.config.default_steps,
            size_px=self.config.sample_size_px,
            ip_adapter=ip_adapter,
        )

    def _compiled(self) -> OurWay | None:
        """The torch backend through `torch.compile`; None, and why, where it cannot be compiled."""
        name, label = "torch_compile_warm", "torch.compile, known subject"
        if self._settings.is_smoke or not self._settings.is_wanted(name):
            self.missing[name] = (label, "left out: compiling takes minutes")
            return None
        try:
            way = OurWay(self._settings.pair, backend="torch", backend_options={"compile": True})
            expected = np.asarray(self.torch.warm(reference_schedule="exact").images[0], float)
            found = np.asarray(way.warm(reference_schedule="exact").images[0], float)
        except Exception as error:  # what a compiler raises has no common type
            self.missing[name] = (label, f"failed: {str(error).splitlines()[0][:200]}")
            return None
        if np.abs(found - expected).mean() > 0.5:
            self.missing[name] = (label, "compiled code draws another picture")
            return None
        return way


def _all_steps(run: DenoiseRun, count: int) -> None:
    for index in range(count):
        run.step(index)


def _with_missing(rows: tuple[Row, ...], missing: dict[str, tuple[str, str]]) -> tuple[Row, ...]:
    """The rows, and those that could not be measured with the reason, before the diffusers ones."""
    gone = tuple(
        replace(Row(name, label, group=_PICTURES), notes={"status": why})
        for name, (label, why) in missing.items()
    )
    return rows + gone
