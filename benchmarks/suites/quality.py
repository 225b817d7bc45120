"""Suite `quality`: identity and scene accuracy against time, for every change that is not exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bootpig_rt.backends.torch_backend import load
from bootpig_rt.benchmarks.bare_unet import BareUNet
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.judged import Jury
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Row, SuiteResult, with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads

NAME = "quality"
HELP = "fewer steps, other solvers, guidance for part of the steps, int8 weights: time and quality"

_STEPS = {"dpmpp_2m": (4, 6, 8, 12, 16, 25), "unipc": (4, 8, 12), "ddim": (8, 12)}
_INTERVALS = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0))


@dataclass(frozen=True)
class _Case:
    """Settings of a picture, and what of them the judges' pipeline takes."""

    name: str
    label: str
    group: str
    params: dict[str, Any]
    guidance_interval: tuple[float, float] = (0.0, 1.0)


def run(settings: Settings) -> SuiteResult:
    """Time a known subject's picture in all cases, then judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there.
    """
    with torch_threads(settings.threads):
        cases = [case for case in _cases(settings.is_smoke) if settings.is_wanted(case.name)]
        ours = OurWay(settings.pair, threads=settings.threads)
        config = ours.pipe.spec.config
        rows = _times(settings, cases, ours)
        jury = Jury(
            settings.data,
            settings.work,
            size_px=config.sample_size_px,
            suite="tiny" if settings.is_smoke else "small",
            prompts=2 if settings.is_smoke else 4,
        )
        judged = []
        for number, case in enumerate(cases):
            settings.progress(f"judging {case.name}", number, len(cases))
            quality = jury.judge(ours.pipe, guidance_interval=case.guidance_interval, **case.params)
            row = next(row for row in rows if row.name == case.name)
            judged.append(replace(row, values=quality.values()))
        rows = [rows[0], *judged]
        if settings.is_wanted("int8"):
            rows += _int8(settings, ours)
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "rounds": settings.rounds,
        },
    )  # fmt: skip


def _cases(is_smoke: bool) -> list[_Case]:
    steps = {"dpmpp_2m": (4, 25)} if is_smoke else _STEPS
    cases = [
        _Case(
            f"{solver} {count}", f"{solver}, {count} steps", "steps and solver",
            {"num_inference_steps": count, "solver": solver},
        )
        for solver, counts in steps.items()
        for count in counts
    ]  # fmt: skip
    for low, high in () if is_smoke else _INTERVALS:
        label = f"guidance in {low:.0%} to {high:.0%} of the steps"
        cases.append(_Case(f"guidance {low}-{high}", label, "guidance interval", {}, (low, high)))
    return cases


def _times(settings: Settings, cases: list[_Case], ours: OurWay) -> list[Row]:
    config = ours.pipe.spec.config
    published = PublishedWay(
        load(settings.pair, "cpu", None), steps=config.default_steps, solver=config.default_solver
    )
    published.install()
    ways = [Way("published", "published way", lambda: published.picture(drawing()))]
    for case in cases:
        draw = partial(ours.warm, guidance_interval=case.guidance_interval, **case.params)
        ways.append(Way(case.name, case.label, draw, group=case.group))
    rows = time_ways(ways, settings.rounds, progress=settings.progress)
    return list(with_ratios(rows, to="published"))


def _int8(settings: Settings, ours: OurWay) -> list[Row]:
    """The U-Net alone with the weights of its matrix products in int8, beside float32."""
    pair = load(settings.pair, "cpu", None).pair
    config = ours.pipe.spec.config
    bare = BareUNet(
        pair.base.unet,
        settings.work / "graphs",
        rows=3,
        side=config.sample_size_px // ours.pipe.spec.vae_scale_factor,
        tokens=int(ours.pipe._tokenizer([""]).shape[1]),
        threads=settings.threads,
    )
    quantised = bare.quantised(settings.work / "graphs")
    launches = 5
    ways = [
        Way(
            name,
            label,
            lambda way=way: [way.launch() for _ in range(launches)],  # type: ignore[misc]
            launches,
            group="U-Net alone, three rows",
        )
        for name, label, way in (
            ("float32 step", "float32", bare),
            ("int8 step", "int8 weights of matrix products", quantised),
        )
    ]
    rows = with_ratios(time_ways(ways, settings.rounds), to="float32 step")
    error = quantised.difference(pair.base.unet)
    return [rows[0], replace(rows[1], values={"relative_error": round(error, 5)})]
