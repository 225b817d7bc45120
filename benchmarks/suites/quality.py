"""Suite `quality`: time against how good pictures are, for every change that is not exact.

Each case is a point of the pair's curve, from which `Pipeline.tune` chooses; `curve.py` makes it of
these rows. Changes that are exact, such as threads and memory, stand beside them with their time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bootpig_rt.benchmarks.judged import Jury, Quality
from bootpig_rt.benchmarks.openvino_ways import PRECISIONS, openvino_loaders
from bootpig_rt.benchmarks.ours import OurWay, psnr_db, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult, Target
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.student import student_bundle
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Way
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.text_encoders import states_shape
from bootpig_rt.request import Request
from bootpig_rt.tuning import rows_of_steps

HELP = "fewer steps, kept features, part-time guidance and reference, a student: time and quality"

_STEPS = {"dpmpp_2m": (25, 4, 6, 8, 12, 16), "unipc": (4, 8, 12), "ddim": (8, 12)}
_INTERVALS = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0))
_WINDOWS = ("window:0-0.6", "window:0-0.8", "window:0.2-1")
_CACHES = (
    "cache:2",
    "cache:3",
    "cache:4",
    "cache:6",
    "cache:3+window:0-0.8",
    "cache:3+window:0.2-1",
)
_BOTH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("16 steps", {"num_inference_steps": 16}),
    ("12 steps", {"num_inference_steps": 12}),
    ("guidance 0.0-0.8", {"guidance_interval": (0.0, 0.8)}),
)
"""What is drawn with `cache:2` as well."""
_NO_GUIDANCE = {"image_guidance_scale": 1.0, "text_guidance_scale": 1.0}
BASE = "dpmpp_2m 25"
"""What the others are compared with, in time and picture by picture."""
NO_SUBJECT = "no subject"
"""The control: what a picture gets that never saw its subject."""

_EXACT_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "as is": ("as is", {}),
    "one thread": ("one thread", {"intra_op_threads": 1}),
    "no arena": ("memory returned after each launch (arena=False)", {"arena": False}),
    "no spinning": ("threads sleep at once (spinning=False)", {"spinning": False}),
    "portable": ("fewer fusions (portable=True)", {"portable": True}),
}


@dataclass(frozen=True)
class Case:
    """Settings of a picture, and the bundle that draws it.

    Attributes:
        name: Of its row.
        label: Of its row.
        group: Of its row.
        bundle: Draws it.
        options: Of a picture; what is left out is that of the bundle's pair.
        has_subject: False: the picture is drawn from its prompt alone.
        openvino: The precision, where OpenVINO draws.
    """

    name: str
    label: str
    group: str
    bundle: Path
    options: dict[str, Any] = field(default_factory=dict)
    has_subject: bool = True
    openvino: str = ""


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Time a known subject's picture in all cases, then judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
        CheckpointError: A student was asked for and is not there.
    """
    bench = Bench(settings, journal)
    load = functools.cache(partial(OurWay, threads=settings.threads))
    in_openvino = openvino_loaders(settings, settings.pair, steps=None)

    def loaded(case: Case) -> OurWay:
        return in_openvino[case.openvino]() if case.openvino else load(case.bundle)

    with torch_threads(settings.threads):
        every = cases_of(settings)
        settings.check_only([*(case.name for case in every), *_EXACT_CHANGES])
        always = (BASE, NO_SUBJECT)
        cases = {c.name: c for c in every if settings.is_wanted(c.name) or c.name in always}
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
            shots = None if case.has_subject else jury.shots_without
            found = jury.judge(loaded(case), case.name, shots=shots, **case.options)
            judged[row.name] = found
            base = None if row.name == BASE else judged[BASE]
            apart = {} if base is None else {"from_base_db": psnr_db(found.pixels, base.pixels)}
            rows[number] = row.with_values(pictures=len(found.whose), **apart, **found.values(base))
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


def _ready(load: Callable[[Case], OurWay], case: Case) -> Ready:
    ours = load(case)
    if not case.has_subject:
        return Ready(ours.no_reference)
    work = work_of(ours, case.options)
    return Ready(partial(ours.warm, **case.options), values={"work": work})


def _targets(judged: dict[str, Quality]) -> list[Target]:
    """int8 beside bf16, in the share of pictures that are nearest to their own reference."""
    names = ("openvino int8", "openvino bf16")
    found = None
    if all(name in judged for name in names):
        int8, bf16 = (float(np.mean(judged[name].said["network"])) for name in names)
        found = 100 * (bf16 - int8)
    return [Target("identity that int8 loses to bf16, points", 1.0, found, is_most=True)]


def work_of(ours: OurWay, options: dict[str, Any]) -> float:
    """Multiplications of the U-Net in all steps of a picture with one reference, in 1e9."""
    deep, shallow = _row_work(ours.pair_folder)
    request = Request(prompt="any", subject=ours.subject, **options)
    steps = rows_of_steps(ours.pipe.engine.planner.plan(request))
    return sum(rows * (deep if is_deep else shallow) for rows, is_deep in steps) / 1e9


@functools.cache
def _row_work(folder: Path) -> tuple[float, float]:
    """Multiplications of a row that reads one reference: of all blocks, and of the last one."""
    pair = load_pair(folder)
    side = pair.config.sample_size_px // 2 ** (len(pair.vae.config.block_out_channels) - 1)
    noise = torch.zeros(1, int(pair.base.unet.config.in_channels), side, side)
    t, states = torch.zeros(1, dtype=torch.int64), torch.zeros(1, *states_shape(pair.text_encoder))
    refs = torch.zeros(1, 1, dtype=torch.int64)
    found = []
    with torch.inference_mode():
        table = pair.base.project_reference(pair.reference(noise, t, states))
        text, (_, added) = pair.base.project_text(states), pair.base.split_text(states)
        features = None
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                _, features = pair.base.draw(
                    noise, t, text, table, refs, features=features, added=added
                )
            found.append(counter.get_total_flops() / 2)
    return found[0], found[1]


def _changed(settings: Settings, load: Any, options: dict[str, Any]) -> Ready:
    ours = OurWay(settings.pair, threads=settings.threads, backend_options=options)
    usual, drawn = (np.asarray(each.warm().images[0]) for each in (load(settings.pair), ours))
    return Ready(ours.warm, values={"pixels_db": round(psnr_db(drawn, usual), 1)})


def cases_of(settings: Settings) -> list[Case]:
    """All that a run of the suite draws and judges, the full setting first."""
    pair, is_smoke = settings.pair, settings.is_smoke
    steps = {"dpmpp_2m": (25, 4)} if is_smoke else _STEPS
    cases = [
        Case(
            f"{solver} {count}", f"{solver}, {count} steps", "steps and solver", pair,
            {"num_inference_steps": count, "solver": solver},
        )
        for solver, counts in steps.items()
        for count in counts
    ]  # fmt: skip
    for name in ("cache:2",) if is_smoke else _CACHES:
        cases.append(Case(name, f"approximation {name}", "kept features", pair,
                          {"approximation": name}))  # fmt: skip
    for name, options in () if is_smoke else _BOTH:
        cases.append(Case(f"cache:2, {name}", f"approximation cache:2, {name}", "several at once",
                          pair, {"approximation": "cache:2", **options}))  # fmt: skip
    for low, high in () if is_smoke else _INTERVALS:
        label = f"guidance in {low:.0%} to {high:.0%} of the steps"
        cases.append(
            Case(f"guidance {low}-{high}", label, "guidance interval", pair,
                 {"guidance_interval": (low, high)})
        )  # fmt: skip
    for window in () if is_smoke else _WINDOWS:
        label = f"reference read in {window.removeprefix('window:')} of the steps"
        cases.append(Case(window, label, "reference window", pair,
                          {"reference_schedule": window}))  # fmt: skip
    for scale in () if is_smoke else (2.0, 3.5):
        scales = {"image_guidance_scale": scale, "text_guidance_scale": scale}
        label = f"both scales {scale}: no row for the image branch"
        cases.append(Case(f"one scale {scale}", label, "two rows", pair, scales))
    cases.append(Case(NO_SUBJECT, "without the subject", "control", pair, has_subject=False))
    cases += [
        Case(f"openvino {precision}", f"OpenVINO {precision}, as it is", "precision", pair,
              openvino=precision)
        for precision in PRECISIONS
    ]  # fmt: skip
    cases.append(
        Case("teacher 8", "teacher without guidance, 8 steps", "student", pair,
              {"num_inference_steps": 8, **_NO_GUIDANCE})
    )  # fmt: skip
    if settings.student is not None:
        student = student_bundle(settings.student, settings.work)
        cases += [
            Case(f"student {count}", f"student, {count} steps", "student", student,
                 {"num_inference_steps": count, **_NO_GUIDANCE})
            for count in (8, 4)
        ]  # fmt: skip
    return cases
