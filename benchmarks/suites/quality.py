"""Suite `quality`: identity and scene accuracy against time, for every change that is not exact.

Changes that are exact, such as threads and memory, stand beside them with their time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bootpig_rt.backends.torch.backend import load
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.judged import Jury, Quality, psnr_db
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.student import student_bundle
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.benchmarks.variants import step_variant

NAME = "quality"
HELP = (
    "fewer steps, other solvers, part-time guidance, int8 and float16 weights, a student: time "
    "and quality"
)

_STEPS = {"dpmpp_2m": (4, 6, 8, 12, 16, 25), "unipc": (4, 8, 12), "ddim": (8, 12)}
_INTERVALS = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0))
_WITHOUT_GUIDANCE = (1.0, 1.0)
_BASE = "dpmpp_2m 25"
"""What the others are compared with, picture by picture."""

_LARGEST_PIXEL = 255.0

_Ways: TypeAlias = "dict[Path, OurWay]"


@dataclass(frozen=True)
class _Case:
    """Settings of a picture, and the bundle that draws it."""

    name: str
    label: str
    group: str
    bundle: Path
    params: dict[str, Any] = field(default_factory=dict)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_scales: tuple[float, float] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of a call of the pipeline."""
        found = self.params | {"guidance_interval": self.guidance_interval}
        if self.guidance_scales is not None:
            image, text = self.guidance_scales
            found |= {"image_guidance_scale": image, "text_guidance_scale": text}
        return found


def run(settings: Settings) -> SuiteResult:
    """Time a known subject's picture in all cases, then judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
        CheckpointError: A student was asked for and is not there.
    """
    with torch_threads(settings.threads):
        every = _cases(settings)
        tried = _options(settings.threads)
        settings.check_only([*(case.name for case in every), *tried])
        cases = [c for c in every if settings.is_wanted(c.name) or c.name == _BASE]
        ours = {b: OurWay(b, threads=settings.threads) for b in {case.bundle for case in cases}}
        config = ours[settings.pair].pipe.spec.config
        jury = Jury(
            settings.data,
            settings.work,
            size_px=config.sample_size_px,
            suite="tiny" if settings.is_smoke else "small",
            prompts=2 if settings.is_smoke else 4,
        )
        timed = _times(settings, cases, ours)
        said: dict[str, Quality] = {}
        for number, case in enumerate(cases):
            settings.progress(f"judging {case.name}", number, len(cases))
            said[case.name] = jury.judge(
                ours[case.bundle].pipe,
                guidance_interval=case.guidance_interval,
                guidance_scales=case.guidance_scales,
                **case.params,
            )
        rows = [timed[0]]
        for case, row in zip(cases, timed[1:], strict=True):
            values = said[case.name].values()
            if case.name != _BASE:
                values |= said[case.name].change_from(said[_BASE])
            rows.append(replace(row, values=values))
        if settings.student is None and not settings.only:
            status = "no student: train one with `bootpig-rt train training/configs/distill.toml`"
            rows.append(Row("student", "student", "student", notes={"status": status}))
        rows += _exact_changes(settings, tried)
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "rounds": _rounds(settings),
            "compared_with": _BASE,
        },
    )  # fmt: skip


def _rounds(settings: Settings) -> int:
    """There are many ways here, and each one runs beside the published way: fewer rounds."""
    return max(1, settings.rounds // 2)


def _cases(settings: Settings) -> list[_Case]:
    pair = settings.pair
    steps = {"dpmpp_2m": (4, 25)} if settings.is_smoke else _STEPS
    cases = [
        _Case(
            f"{solver} {count}", f"{solver}, {count} steps", "steps and solver", pair,
            {"num_inference_steps": count, "solver": solver},
        )
        for solver, counts in steps.items()
        for count in counts
    ]  # fmt: skip
    for low, high in () if settings.is_smoke else _INTERVALS:
        label = f"guidance in {low:.0%} to {high:.0%} of the steps"
        cases.append(
            _Case(
                f"guidance {low}-{high}", label, "guidance interval", pair,
                guidance_interval=(low, high),
            )
        )  # fmt: skip
    cases += [
        _Case("int8", "step with int8 weights of matrix products", "weights",
              step_variant(pair, "int8", settings.work)),
        _Case("float16", "step computed in float16 (stored so by default)", "weights",
              step_variant(pair, "float16", settings.work)),
        _Case("teacher 8", "teacher without guidance, 8 steps", "student", pair,
              {"num_inference_steps": 8}, guidance_scales=_WITHOUT_GUIDANCE),
    ]  # fmt: skip
    if settings.student is not None:
        student = student_bundle(settings.student, settings.work)
        cases += [
            _Case(f"student {count}", f"student, {count} steps", "student", student,
                  {"num_inference_steps": count})
            for count in (8, 4)
        ]  # fmt: skip
    return cases


def _times(settings: Settings, cases: Sequence[_Case], ours: _Ways) -> Sequence[Row]:
    config = ours[settings.pair].pipe.spec.config
    published = PublishedWay(
        load(settings.pair, "cpu", None), steps=config.default_steps, solver=config.default_solver
    )
    published.install()
    ways = [Way("published", "published way", lambda: published.picture(drawing()))]
    for case in cases:
        draw = partial(ours[case.bundle].warm, **case.options)
        ways.append(Way(case.name, case.label, draw, group=case.group))
    return time_ways(
        ways, _rounds(settings), baseline="published", progress=settings.progress
    )  # fmt: skip


def _options(threads: int) -> dict[str, tuple[str, int, dict[str, Any]]]:
    """Changes that are exact, by name of their row: label, threads, options of the backend."""
    return {
        "as is": (f"as is, threads: {threads}", threads, {}),
        "one thread": ("one thread", 1, {}),
        "no arena": ("memory returned after each launch (arena=False)", threads, {"arena": False}),
        "no spinning": ("threads sleep at once (spinning=False)", threads, {"spinning": False}),
        "portable": ("fewer fusions (portable=True)", threads, {"portable": True}),
    }


def _exact_changes(
    settings: Settings, tried: dict[str, tuple[str, int, dict[str, Any]]]
) -> list[Row]:
    """Pictures of a known subject with other options of the runtime, beside those as it is."""
    wanted = [name for name in tried if settings.is_wanted(name)]
    if not wanted:
        return []
    ways, drawn = [], {}
    for name in dict.fromkeys(["as is", *wanted]):
        label, threads, options = tried[name]
        ours = OurWay(settings.pair, threads=threads, backend_options=options)
        drawn[name] = np.asarray(ours.warm().images[0])
        far = round(psnr_db(drawn[name], drawn["as is"], largest=_LARGEST_PIXEL), 1)
        ways.append(Way(name, label, ours.warm, group="exact changes", values={"pixels_db": far}))
    return list(time_ways(ways, settings.rounds, baseline="as is", progress=settings.progress))
