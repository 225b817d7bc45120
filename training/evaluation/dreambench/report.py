"""The report of a run: numbers for JSON, and whether they may be laid beside the published ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bootpig_rt.training.evaluation.dreambench.data import (
    NUM_PROMPTS,
    NUM_SUBJECTS,
    PICTURES_PER_PROMPT,
    BenchPrompt,
    BenchSubject,
    DreamBench,
)
from bootpig_rt.training.evaluation.dreambench.drawing import Run
from bootpig_rt.training.evaluation.dreambench.encoders import About
from bootpig_rt.training.evaluation.dreambench.measure import (
    ColumnControls,
    Copying,
    Measured,
    Metric,
    Photographs,
)
from bootpig_rt.training.evaluation.dreambench.settings import DrawSettings
from bootpig_rt.training.evaluation.statistics import Rate, rate, rounded

FORMAT = 1
OF_PROTOCOL = ("dino", "clip_i", "clip_t")

Report = dict[str, Any]
"""What `report.json` holds."""

_Choice = Callable[[BenchSubject, BenchPrompt], bool]

# Keys of the report, and which subjects and prompts they are about.
_SUBSETS: dict[str, _Choice] = {
    "objects": lambda subject, _: not subject.is_live,
    "live": lambda subject, _: subject.is_live,
    "recontext": lambda _, prompt: prompt.kind == "recontext",
    "accessory": lambda _, prompt: prompt.kind == "accessory",
    "property": lambda _, prompt: prompt.kind == "property",
}


def make_report(
    bench: DreamBench,
    settings: DrawSettings,
    runs: Sequence[Run],
    encoders: Sequence[About],
    measured: Measured,
) -> Report:
    """All that was found, as plain values."""
    per_prompt = settings.per_prompt
    remarks = _remarks(bench, encoders, measured.photographs, per_prompt=per_prompt)
    remarks += _copy_remarks(measured)
    scored = {metric.name: _rate(metric, bench) for metric in measured.metrics}
    subsets = {
        name: {metric.name: _rate(metric, bench, chosen, per_prompt) for metric in measured.metrics}
        for name, chosen in _SUBSETS.items()
    }
    return {
        "format": FORMAT,
        "suite": "dreambench",
        "is_comparable": not _differences(bench, encoders, measured.photographs, per_prompt),
        "remarks": remarks,
        "num_subjects": len(bench.subjects),
        "num_prompts": bench.num_prompts,
        "pictures_per_prompt": per_prompt,
        "encoders": [asdict(about) for about in encoders],
        "settings": asdict(settings),
        "drawing": _drawing(runs),
        "scores": scored,
        "subsets": subsets,
        "photographs": _controls(measured.photographs.controls),
        "oracle": [asdict(check) | {"text": check.text} for check in measured.photographs.oracle],
        "copying": _copying(measured.copying, bench),
        "pictures_without_subject": measured.num_unmasked,
        "subjects": {
            subject.name: {
                metric.name: round(float(metric.values[row].mean()), 4)
                for metric in measured.metrics
            }
            for row, subject in enumerate(bench.subjects)
        },
    }


def make_oracle_report(
    bench: DreamBench, encoders: Sequence[About], photographs: Photographs
) -> Report:
    """What the photographs alone say."""
    return {
        "format": FORMAT,
        "suite": "dreambench",
        "num_subjects": len(bench.subjects),
        "remarks": _remarks(bench, encoders, photographs, per_prompt=PICTURES_PER_PROMPT),
        "encoders": [asdict(about) for about in encoders],
        "photographs": _controls(photographs.controls),
        "oracle": [asdict(check) | {"text": check.text} for check in photographs.oracle],
    }


def is_oracle_right(report: Report) -> bool:
    """Whether every encoder that was checked gives photographs their published score."""
    return all(check["is_right"] for check in report["oracle"])


def _rate(
    metric: Metric,
    bench: DreamBench,
    chosen: _Choice = lambda _, __: True,
    per_prompt: int = 0,
) -> Rate | None:
    values: list[float] = []
    subjects: list[str] = []
    for own, subject in zip(metric.values, bench.subjects, strict=True):
        kept = np.repeat([chosen(subject, each) for each in subject.prompts], per_prompt or 1)
        found = own if not per_prompt else own[kept]
        values += found.tolist()
        subjects += [subject.name] * len(found)
    return rounded(rate(values, subjects))


def _drawing(runs: Sequence[Run]) -> dict[str, Any]:
    pictures = sum(run.pictures for run in runs)
    seconds = sum(run.seconds for run in runs)
    return {
        "pictures": pictures,
        "machine_seconds": round(seconds, 1),
        "seconds_per_picture": round(seconds / pictures, 3) if pictures else None,
        "on": sorted({f"{run.runtime}, {run.precision}, {run.device}" for run in runs}),
        "versions": sorted({run.version for run in runs}),
    }


def _controls(rows: Sequence[ColumnControls]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for row in rows:
        numbers = {"copy": row.copy} if row.controls is None else asdict(row.controls)
        found[row.name] = {
            name: None if value is None else round(value, 4) for name, value in numbers.items()
        }
    return found


def _copying(copying: Copying | None, bench: DreamBench) -> dict[str, Any] | None:
    if copying is None:
        return None
    return {
        "photographs": round(copying.photographs, 4),
        "limit": round(copying.limit, 4),
        "share_over_limit": _rate(copying.over_limit, bench),
    }


def _remarks(
    bench: DreamBench, encoders: Sequence[About], photographs: Photographs, *, per_prompt: int
) -> list[str]:
    differences = _differences(bench, encoders, photographs, per_prompt)
    rights = [check.text for check in photographs.oracle if check.is_right]
    if not differences:
        return ["encoders, photographs and averages are those of the published table", *rights]
    return [*differences, *rights]


def _differences(
    bench: DreamBench, encoders: Sequence[About], photographs: Photographs, per_prompt: int
) -> list[str]:
    """Why the numbers may not be laid beside the published ones; [] if they may."""
    found = []
    size = (len(bench.subjects), bench.num_prompts, per_prompt)
    whole = (NUM_SUBJECTS, NUM_PROMPTS, PICTURES_PER_PROMPT)
    if size != whole:
        found.append(
            "a part of the benchmark: {} subjects, {} prompts, {} pictures of each; ".format(*size)
            + "the whole has {}, {} and {}".format(*whole)
        )
    for about in encoders:
        if about.name != "efficientnet" and not about.is_of_protocol:
            asked = {"clip": "CLIP ViT-B/32", "dino": "DINO ViT-S/16"}[about.name]
            found.append(
                f"another scale: {about.text} is not {asked}, which the table is made with"
            )
    missing = {"clip", "dino"} - {about.name for about in encoders}
    if missing:
        names = " and ".join(sorted(each.upper() for each in missing))
        found.append(f"{names} did not score: nothing to lay beside its published column")
    found += [check.text for check in photographs.oracle if not check.is_right]
    return found


def _copy_remarks(measured: Measured) -> list[str]:
    """A warning for each column in which pictures are more alike than photographs are."""
    oracle = {
        row.name: row.controls.real
        for row in measured.photographs.controls
        if row.controls is not None
    }
    found = []
    for metric in measured.metrics:
        if metric.name in oracle:
            mean = float(np.mean([each.mean() for each in metric.values]))
            if mean > oracle[metric.name]:
                found.append(
                    f"{metric.name} {mean:.3f} is above that of real photographs "
                    f"({oracle[metric.name]:.3f}): the pair may copy its references, look at the "
                    "sheets and the copy-paste score"
                )
    return found
