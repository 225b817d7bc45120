"""Suite `scale`: how time and memory grow, and a cost model checked on held-out settings."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.cost_model import (
    MEMORY_TERMS,
    TERMS,
    Configuration,
    exponent,
    fit,
    machines_for,
    predict,
)
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.pipeline import Pipeline

NAME = "scale"
HELP = "growth of time and memory, a cost model held against measurements, machines for a load"

_Peaks: TypeAlias = dict[Configuration, "int | None"]

_TARGET = 0.15
_UTILISATION = 0.7
_LOADS = (60, 6000)

_VARIED: dict[str, tuple[tuple[str, int], ...]] = {
    "references": (("references", 1), ("references", 2), ("references", 3), ("references", 4)),
    "batch": (("batch", 1), ("batch", 2), ("batch", 4), ("batch", 8)),
    "steps": (("steps", 4), ("steps", 8), ("steps", 16), ("steps", 25), ("steps", 50)),
    "size": (("size_px", 32), ("size_px", 64), ("size_px", 96), ("size_px", 128)),
}
_HELD_OUT = (
    Configuration(steps=12, batch=2, references=2),
    Configuration(steps=20, batch=4, references=1, size_px=32),
    Configuration(steps=10, batch=1, references=3, size_px=96),
    Configuration(steps=6, batch=2, references=1, size_px=128),
)


def run(settings: Settings) -> SuiteResult:
    """Time all settings in turn, fit, and predict those that were held out."""
    groups = _groups(settings.is_smoke)
    fitted = list(dict.fromkeys(each for group in groups.values() for each in group))
    held_out = _HELD_OUT[: 1 if settings.is_smoke else None]
    with torch_threads(settings.threads):
        ours = OurWay(settings.pair, threads=settings.threads, references=4)
        ways = [_way(ours, each) for each in (*fitted, *held_out)]
        timed = {
            row.name: row for row in time_ways(ways, settings.rounds, progress=settings.progress)
        }
        rows: list[Row] = []
        for group, members in groups.items():
            rows += _grown(group, [(each, timed[_name(each)]) for each in members], ours)
        rows += _subjects(ours, (1, 10) if settings.is_smoke else (1, 10, 100))
    rows += _model(
        [(each, timed[_name(each)]) for each in fitted],
        [(each, timed[_name(each)]) for each in held_out],
    )
    some = fitted[:: len(fitted) // len(MEMORY_TERMS)] if settings.is_smoke else fitted
    if settings.is_wanted("memory"):
        rows += _memory_rows(_memory(settings, some, list(held_out)), some, list(held_out))
    config = ours.pipe.spec.config
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={"pair": config.name, "solver": config.default_solver, "rounds": settings.rounds},
    )


def _groups(is_smoke: bool) -> dict[str, list[Configuration]]:
    groups = {
        name: [replace(Configuration(), **{field: value}) for field, value in values]
        for name, values in _VARIED.items()
    }
    if is_smoke:
        short = {name: [replace(c, steps=4) for c in each[:2]] for name, each in groups.items()}
        return short | {"steps": [Configuration(steps=4), Configuration(steps=8)]}
    return groups


def _name(each: Configuration) -> str:
    return f"{each.steps} steps, {each.batch} at once, {each.references} ref, {each.size_px} px"


def _way(ours: OurWay, each: Configuration) -> Way:
    pipe = ours.pipe
    subject = pipe.encode_subject(ours.images[: each.references], REFERENCE_PROMPT)
    draw = partial(
        pipe, PROMPT, subject=subject, num_images=each.batch, seed=1,
        num_inference_steps=each.steps, width=each.size_px, height=each.size_px,
    )  # fmt: skip
    return Way(_name(each), _name(each), draw)


def _grown(group: str, members: list[tuple[Configuration, Row]], ours: OurWay) -> list[Row]:
    """Rows of what is varied, and the exponent of their growth."""
    field = {"size": "size_px"}.get(group, group)
    rows, xs, ys = [], [], []
    for each, row in members:
        x, y = float(getattr(each, field)), row.median_ms or 0.0
        xs.append(x)
        ys.append(y)
        params = ours.pipe.sampling_params(num_inference_steps=each.steps)
        table = ours.pipe.table_bytes(each.references, params)
        values = {"x": x, "table_bytes": float(table)}
        rows.append(replace(row, name=f"{group} {x:.0f}", group=f"over {group}", values=values))
    fitted = {"exponent": round(exponent(xs, ys), 3)}
    label = f"growth of the time over {group}"
    return [*rows, Row(f"exponent {group}", label, "exponents", values=fitted)]


def _subjects(ours: OurWay, counts: tuple[int, ...]) -> list[Row]:
    """Bytes of a store, and time to find a subject's table in it."""
    rows = []
    for count in counts:
        pipe: Pipeline = ours.pipe
        pipe.store.clear()
        subjects = [
            pipe.encode_subject(ours.images[0], REFERENCE_PROMPT, noise_seed=seed)
            for seed in range(count)
        ]
        draw = partial(pipe, PROMPT, seed=1, num_inference_steps=1)
        for subject in subjects:
            draw(subject=subject, reference_schedule="anchor:200")
        times = []
        for subject in subjects[:10]:
            start = time.perf_counter()
            draw(subject=subject, reference_schedule="anchor:200")
            times.append(1e3 * (time.perf_counter() - start))
        held = float(pipe.store.stats().device_bytes)
        rows.append(
            Row(
                f"subjects {count}", f"{count} subjects, a picture of one step", "over subjects",
                samples_ms=tuple(times), values={"x": float(count), "table_bytes": held},
            )
        )  # fmt: skip
    return rows


def _memory(
    settings: Settings, fitted: list[Configuration], held_out: list[Configuration]
) -> _Peaks:
    """Most memory of `bootpig-rt generate` in a process of its own for each setting, in bytes."""
    peaks: _Peaks = {}
    with tempfile.TemporaryDirectory() as work:
        references = []
        for index in range(max(each.references for each in (*fitted, *held_out))):
            references.append(Path(work) / f"{index}.png")
            drawing(index).save(references[-1])
        wanted = [*fitted, *held_out]
        for done, each in enumerate(wanted):
            settings.progress(f"memory of {_name(each)}", done, len(wanted))
            words = ["-m", "bootpig_rt", "generate", "--model", str(settings.pair), "--quiet"]
            words += ["--device", "cpu", "--prompt", PROMPT, "--num-images", str(each.batch)]
            words += ["--steps", str(each.steps), "--reference-schedule", "exact"]
            words += ["--width", str(each.size_px), "--height", str(each.size_px)]
            for path in references[: each.references]:
                words += ["--reference", str(path)]
            peaks[each] = run_child([*words, "-o", str(Path(work) / "out.png")]).peak_bytes
    return peaks


def _memory_rows(
    peaks: _Peaks, fitted: list[Configuration], held_out: list[Configuration]
) -> list[Row]:
    """Peaks, prices of memory, and predictions of held-out settings."""
    known = {each: float(peak) for each, peak in peaks.items() if peak is not None}
    rows = [
        Row(
            f"memory {_name(each)}", _name(each), "memory of a process", values={"peak_bytes": peak}
        )
        for each, peak in known.items()
        if each in fitted
    ]
    if len(known) < len(peaks):
        return rows  # a system that does not say how much memory a process took
    prices = fit([(each.memory_counts, known[each]) for each in fitted])
    named = {f"{term}_bytes": float(round(p)) for term, p in zip(MEMORY_TERMS, prices, strict=True)}
    rows.append(Row("memory prices", "prices of the memory model", "cost model", values=named))
    errors = []
    for each in held_out:
        error = predict(prices, each.memory_counts) / known[each] - 1
        errors.append(abs(error))
        values: dict[str, float | None] = {
            "peak_bytes": known[each],
            "predicted_bytes": float(round(predict(prices, each.memory_counts))),
            "error_share": round(error, 4),
        }
        rows.append(Row(f"memory {_name(each)}", _name(each), "held out, memory", values=values))
    worst = {"worst_error_share": round(max(errors), 4), "target_share": _TARGET}
    label = "worst prediction of a held-out memory"
    return [*rows, Row("memory worst", label, "cost model", values=worst)]


def _model(
    fitted: list[tuple[Configuration, Row]], held_out: list[tuple[Configuration, Row]]
) -> list[Row]:
    """Prices, predictions of held-out settings, and machines for a load."""
    found = fit([(each.counts, row.median_ms or 0.0) for each, row in fitted])
    prices = {f"{term}_ms": round(p, 5) for term, p in zip(TERMS, found, strict=True)}
    rows = [Row("prices", "prices of the cost model", "cost model", values=prices)]
    errors = []
    for each, row in held_out:
        predicted, measured = predict(found, each.counts), row.median_ms or float("nan")
        errors.append(abs(predicted / measured - 1))
        values = {
            "predicted_ms": round(predicted, 2),
            "error_share": round(predicted / measured - 1, 4),
        }
        rows.append(replace(row, group="held out", values=values))
    worst = {"worst_error_share": round(float(np.max(errors)), 4), "target_share": _TARGET}
    rows.append(Row("worst", "worst prediction of a held-out setting", "cost model", values=worst))
    batch = Configuration(batch=4)
    each_ms = predict(found, batch.counts) / batch.batch
    for load in _LOADS:
        count = machines_for(load, each_ms, utilisation=_UTILISATION)
        rows.append(
            Row(
                f"plan {load}", f"{load} pictures a minute, 25 steps, four at once", "plan",
                values={"machines": float(count), "utilisation": _UTILISATION,
                        "ms_a_picture": round(each_ms, 1)},
            )
        )  # fmt: skip
    return rows
