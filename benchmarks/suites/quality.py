"""Suite `quality`: time against how good pictures are, for every change that is not exact.

Changes that are exact, such as threads and memory, stand beside them with their time alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.judged import Jury, Quality
from bootpig_rt.benchmarks.openvino_ways import PRECISIONS, openvino_loaders
from bootpig_rt.benchmarks.result import Row, SuiteResult, Target
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.student import student_bundle
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Way
from bootpig_rt.benchmarks.ways import OurWay, psnr_db, torch_threads

HELP = "fewer steps, other solvers, part-time guidance, a student: time and quality"

_STEPS = {"dpmpp_2m": (25, 4, 6, 8, 12, 16), "unipc": (4, 8, 12), "ddim": (8, 12)}
_INTERVALS = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0))
_NO_GUIDANCE = {"image_guidance_scale": 1.0, "text_guidance_scale": 1.0}
BASE = "dpmpp_2m 25"
"""What the others are compared with, in time and picture by picture."""

_EXACT_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "as is": ("as is", {}),
    "one thread": ("one thread", {"intra_op_threads": 1}),
    "no arena": ("memory returned after each launch (arena=False)", {"arena": False}),
    "no spinning": ("threads sleep at once (spinning=False)", {"spinning": False}),
    "portable": ("fewer fusions (portable=True)", {"portable": True}),
}


@dataclass(frozen=True)
class _Case:
    """Settings of a picture, and the bundle that draws it."""

    name: str
    label: str
    group: str
    bundle: Path
    options: dict[str, Any] = field(default_factory=dict)
    openvino: str = ""  # the precision, where OpenVINO draws


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Time a known subject's picture in all cases, then judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
        CheckpointError: A student was asked for and is not there.
    """
    bench = Bench(settings, journal)
    load = functools.cache(partial(OurWay, threads=settings.threads))
    in_openvino = openvino_loaders(settings, settings.pair, steps=None)

    def loaded(case: _Case) -> OurWay:
        return in_openvino[case.openvino]() if case.openvino else load(case.bundle)

    with torch_threads(settings.threads):
        every = _cases(settings)
        settings.check_only([*(case.name for case in every), *_EXACT_CHANGES])
        cases = {c.name: c for c in every if settings.is_wanted(c.name) or c.name == BASE}
        config = load(settings.pair).config
        jury = Jury(settings, config.sample_size_px)
        ways = [
            Way(case.name, case.label, partial(_ready, loaded, case), group=case.group)
            for case in cases.values()
        ]
        rows = bench.rows("changes that are not exact", ways, baseline=BASE)
        judged: dict[str, Quality] = {}
        for number, row in enumerate(rows):
            case = cases[row.name]
            if row.status:
                continue
            judged[row.name] = jury.judge(loaded(case), case.name, **case.options)
            base = None if row.name == BASE else judged[BASE]
            rows[number] = row.with_values(**judged[row.name].values(base))
        if settings.student is None and not settings.only:
            status = (
                "not available: train one with `bootpig-rt train training/configs/distill.toml`"
            )
            rows.append(Row("student", "student", "student", status=status))
        exact = [
            Way(name, label, partial(_changed, settings, load, options), group="exact changes")
            for name, (label, options) in _EXACT_CHANGES.items()
        ]
        rows += bench.rows("exact changes", exact, baseline="as is")
    return SuiteResult(
        "quality",
        tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "compared_with": BASE,
        },
        targets=tuple(_targets(judged)),
    )  # fmt: skip


def _ready(load: Callable[[_Case], OurWay], case: _Case) -> Ready:
    return Ready(partial(load(case).warm, **case.options))


def _targets(judged: dict[str, Quality]) -> list[Target]:
    """int8 beside bf16, in the share of pictures that are nearest to their own reference."""
    names = ("openvino int8", "openvino bf16")
    found = None
    if all(name in judged for name in names):
        int8, bf16 = (float(np.mean(judged[name].said["network"])) for name in names)
        found = 100 * (bf16 - int8)
    return [Target("identity that int8 loses to bf16, points", 1.0, found, is_most=True)]


def _changed(settings: Settings, load: Any, options: dict[str, Any]) -> Ready:
    ours = OurWay(settings.pair, threads=settings.threads, backend_options=options)
    usual, drawn = (np.asarray(each.warm().images[0]) for each in (load(settings.pair), ours))
    return Ready(ours.warm, values={"pixels_db": round(psnr_db(drawn, usual), 1)})


def _cases(settings: Settings) -> list[_Case]:
    pair = settings.pair
    steps = {"dpmpp_2m": (25, 4)} if settings.is_smoke else _STEPS
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
            _Case(f"guidance {low}-{high}", label, "guidance interval", pair,
                  {"guidance_interval": (low, high)})
        )  # fmt: skip
    cases += [
        _Case(f"openvino {precision}", f"OpenVINO {precision}, as it is", "precision", pair,
              openvino=precision)
        for precision in PRECISIONS
    ]  # fmt: skip
    cases.append(
        _Case("teacher 8", "teacher without guidance, 8 steps", "student", pair,
              {"num_inference_steps": 8, **_NO_GUIDANCE})
    )  # fmt: skip
    if settings.student is not None:
        student = student_bundle(settings.student, settings.work)
        cases += [
            _Case(f"student {count}", f"student, {count} steps", "student", student,
                  {"num_inference_steps": count})
            for count in (8, 4)
        ]  # fmt: skip
    return cases
