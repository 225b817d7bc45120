"""Suite `baselines`: ours beside the ways that people would otherwise take, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bootpig_rt.backends.torch.backend import load
from bootpig_rt.benchmarks.bare_unet import BareUNet, Gemm, unet_flops
from bootpig_rt.benchmarks.diffusers_ways import DiffusersWay
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.ours import OurWay, StepBlock, picture_difference, pixel_difference
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, choose, time_ways
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

_BLOCK = 5
"""Steps that are timed together: blocks of two ways then lie close to each other in time."""

_STEP_ROUNDS = 3
"""A step is quick: so many times the rounds of pictures."""

_GOALS = {
    "ours_cold": (1 / 2.2,),
    "ours_warm": (1 / 3,),
    "ours_warm_4_images": (1 / 3,),
    "ours_step": (1.25, 1.15),
}
_PIXELS = 0.5


def run(settings: Settings) -> SuiteResult:
    """Check that the ways draw the same, then time them in turn.

    Raises:
        NumericalError: Our pictures and that of the published way differ.
        ParameterError: `--only` matches no row.
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
        pictures, steps = list(made.pictures()), list(made.steps())
        warmups = 0 if settings.is_smoke else 1
        settings.check_only([way.name for way in (*pictures, *steps)])
        rows = [
            *time_ways(
                choose(pictures, settings),
                settings.rounds,
                baseline="published",
                warmups=warmups,
                progress=settings.progress,
            ),
            *made.missing(),
            *time_ways(
                choose(steps, settings),
                _STEP_ROUNDS * settings.rounds,
                baseline="bare_unet_step",
                warmups=warmups,
                progress=settings.progress,
            ),
        ]
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings=made.settings(),
        checks=tuple(checks),
        goals=tuple(_goals(rows)),
    )


def _goals(rows: list[Row]) -> Iterator[Check]:
    """What is aimed at, as time over that of the row that the ratio is to."""
    for row in rows:
        if row.ratio is not None and row.name in _GOALS:
            for limit in _GOALS[row.name]:
                yield Check(f"{row.name} over {row.ratio_to}", 1 / row.ratio.value, limit)


class _Ways:
    """All ways, each loaded with modules of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._missing: dict[str, tuple[str, str]] = {}
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
        four = self.ours.warm(4, **_EXACT).images
        alone = self.ours.one_by_one(4, **_EXACT)
        return [
            *(
                Check(f"pixels: {name}, published", pixel_difference(drawn, theirs), _PIXELS)
                for name, drawn in (
                    ("ours new", self.ours.cold(**_EXACT)),
                    ("ours known", self.ours.warm(**_EXACT)),
                    ("torch backend new", self.torch.cold(**_EXACT)),
                    ("torch backend known", self.torch.warm(**_EXACT)),
                )
            ),
            Check("pixels: ours four, one by one", picture_difference(four, alone), _PIXELS),
            Check(
                "bare U-Net: ONNX Runtime, torch", self.bare.difference(self.pair.base.unet), 1e-3
            ),
        ]

    def missing(self) -> list[Row]:
        """Rows that could not be measured, with the reason."""
        return [
            Row(name, label, group=_PICTURES, notes={"status": why})
            for name, (label, why) in self._missing.items()
            if self._settings.is_wanted(name)
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
        label = f"floor: one picture alone, U-Net of {_ROWS} full rows, {steps} times"
        yield way("bare_unet", label, ort_name, lambda: [self.bare.launch() for _ in range(steps)])
        label = "floor: one picture alone, the same operations at the rate of a matrix product"
        share = self.gemm.flops / (steps * self.flops)
        yield way("arithmetic", label, torch_name, self.gemm.run, share)

    def steps(self) -> Iterator[Way]:
        """Blocks of steps of a batch that is bound already, per step."""
        count = min(_BLOCK, self.config.default_steps)
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
        block = StepBlock(ours, _BLOCK, **_EXACT)
        return Way(
            name,
            label,
            block.run,
            block.count,
            group=_STEPS,
            values={
                "rows": float(len(block.batch.text_of_row)),
                "references": float(block.num_references),
            },
            notes={"runtime": ours.pipe._backend.name},
            prepare=block.prepare,
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
            self._missing[name] = (label, "left out: compiling takes minutes")
            return None
        try:
            way = OurWay(self._settings.pair, backend="torch", backend_options={"compile": True})
            expected, found = self.torch.warm(**_EXACT).images, way.warm(**_EXACT).images
        except Exception as error:  # what a compiler raises has no common type
            self._missing[name] = (label, f"failed: {str(error).splitlines()[0][:200]}")
            return None
        if picture_difference(found, expected) > _PIXELS:
            self._missing[name] = (label, "compiled code draws another picture")
            return None
        return way
