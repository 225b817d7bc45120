"""Suite `scale`: how time and memory grow, and a cost model checked on held-out settings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.capacity import CostModel, Load, plan
from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.cost_model import (
    MEMORY_TERMS,
    TERMS,
    Configuration,
    exponent_interval,
    exponent_range,
    fit,
    predict,
)
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads

NAME = "scale"
HELP = "growth of time and memory, a cost model held against measurements, machines for a load"

_TARGET = 0.15
_LOADS = (60, 6000, 600_000)
_NEW_SUBJECTS = 0.1
_REFERENCES = 4

_VARIED: dict[str, tuple[tuple[str, int], ...]] = {
    "references": (("references", 1), ("references", 2), ("references", 3), ("references", 4)),
    "batch": (("batch", 1), ("batch", 2), ("batch", 4), ("batch", 8)),
    "steps": (("steps", 4), ("steps", 8), ("steps", 16), ("steps", 25), ("steps", 50)),
    "size": (("size_px", 32), ("size_px", 64), ("size_px", 96), ("size_px", 128)),
}
_MIXED = (
    Configuration(steps=12, batch=2, references=2),
    Configuration(steps=20, batch=4, references=1, size_px=32),
    Configuration(steps=10, batch=1, references=3, size_px=96),
    Configuration(steps=6, batch=2, references=1, size_px=128),
)
_NEW = (
    Configuration(steps=8, is_new=True),
    Configuration(steps=8, references=3, is_new=True),
    Configuration(steps=8, entries=8, is_new=True),
    Configuration(steps=25, references=4, entries=25, is_new=True),
)
# Chosen before any of them was measured, after the terms were; never fitted.
_HELD_OUT = (
    Configuration(steps=15, batch=3, references=1, size_px=96),
    Configuration(steps=10, batch=2, references=3),
    Configuration(steps=18, batch=1, references=2, size_px=128),
    Configuration(steps=30, batch=2, references=2, size_px=32),
    Configuration(steps=12, references=2, entries=12, is_new=True),
)


def run(settings: Settings) -> SuiteResult:
    """Time all settings in turn, fit, and predict those that were held out."""
    groups = _groups(settings.is_smoke)
    known = list(dict.fromkeys([*(each for one in groups.values() for each in one), *_MIXED]))
    fitted, held_out = [*known, *_NEW], _HELD_OUT[: 2 if settings.is_smoke else None]
    with torch_threads(settings.threads):
        ours = OurWay(settings.pair, threads=settings.threads, references=_REFERENCES)
        ways = [_way(ours, each) for each in (*fitted, *held_out)]
        timed = _timed(ways, settings)
        rows: list[Row] = []
        for group, members in groups.items():
            rows += _grown(group, [(each, timed[_name(each)]) for each in members], ours)
        rows += [replace(timed[_name(each)], group="mixed") for each in _MIXED]
        rows += [replace(timed[_name(each)], group="new subjects") for each in _NEW]
        rows += _subjects(ours, (1, 10) if settings.is_smoke else (1, 10, 100), settings.rounds)
    rows += _time_model(
        [(each, timed[_name(each)]) for each in fitted],
        [(each, timed[_name(each)]) for each in held_out],
    )
    if settings.is_wanted("memory"):
        if settings.is_smoke:
            groups = {name: each for name, each in groups.items() if name != "batch"}
            known = [each for each in known if each.size_px < 96]
        rows += _memory(settings, groups, known, [each for each in held_out if not each.is_new])
    config = ours.pipe.spec.config
    about = {"pair": config.name, "solver": config.default_solver, "rounds": settings.rounds}
    return SuiteResult(
        suite=NAME,
        rows=(*rows, *_plans(rows, about)),
        settings=about,
        goals=tuple(
            Check(row.label, row.values["worst_error_share"] or 0.0, _TARGET)
            for row in rows
            if "worst_error_share" in row.values
        ),
    )


def _timed(ways: Sequence[Way], settings: Settings) -> dict[str, Row]:
    """Rows by name, with `steady_ms`: their time at the median speed of the machine.

    A machine that others use has two speeds or more, and a few rounds fall on either. A slow spell
    hits a run and the runs of the first setting beside it alike, so their ratio holds.
    """
    name = ways[0].name
    rows = time_ways(ways, settings.rounds, baseline=name, progress=settings.progress)
    usual = next(row.median_ms or 0.0 for row in rows if row.name == name)
    timed = {}
    for row in rows:
        ratios = np.array(row.samples_ms) / row.baseline_ms if row.baseline_ms else np.ones(1)
        steady = {"steady_ms": round(usual * float(np.median(ratios)), 3)}
        # The first setting is a row of each group, under another name: no row to point to.
        timed[row.name] = replace(row, values=steady, ratio=None, ratio_to=None)
    return timed


def _groups(is_smoke: bool) -> dict[str, list[Configuration]]:
    groups = {
        name: [_with(field, value) for field, value in values] for name, values in _VARIED.items()
    }
    if is_smoke:
        # Three each: exponents of memory are taken again without each one.
        short = {name: [replace(c, steps=4) for c in each[:3]] for name, each in groups.items()}
        return short | {"steps": [Configuration(steps=steps) for steps in (2, 4, 8)]}
    return groups


def _with(field: str, value: int) -> Configuration:
    varied: dict[str, Any] = {field: value}
    return Configuration(**varied)


def _name(each: Configuration) -> str:
    words = f"{each.steps} steps, {each.batch} at once, {each.references} ref, {each.size_px} px"
    return f"{words}, new, {each.entries} entries" if each.is_new else words


def _way(ours: OurWay, each: Configuration) -> Way:
    pictures = ours.images[: each.references]
    shown: dict[str, Any]
    if each.is_new:
        schedule = "exact" if each.entries > 1 else "clean"
        shown = {
            "reference_images": pictures, "reference_prompt": REFERENCE_PROMPT,
            "reference_schedule": schedule,
        }  # fmt: skip
    else:
        shown = {"subject": ours.pipe.encode_subject(pictures, REFERENCE_PROMPT)}
    draw = partial(
        ours.forgetful if each.is_new else ours.pipe, PROMPT, num_images=each.batch, seed=1,
        num_inference_steps=each.steps, width=each.size_px, height=each.size_px, **shown,
    )  # fmt: skip
    return Way(_name(each), _name(each), draw)


def _grown(group: str, members: Sequence[tuple[Configuration, Row]], ours: OurWay) -> list[Row]:
    """Rows of what is varied, and the exponent of their growth."""
    rows = []
    xs = [_varied(group, each) for each, _ in members]
    for (each, row), x in zip(members, xs, strict=True):
        params = ours.pipe.sampling_params(num_inference_steps=each.steps)
        table = ours.pipe.table_bytes(each.references, params)
        values = dict(row.values) | {"x": x, "table_bytes": float(table)}
        rows.append(replace(row, name=f"{group} {x:.0f}", group=f"over {group}", values=values))
    rounds = min(len(row.samples_ms) for _, row in members)
    found = exponent_interval(xs, [_steady_samples(row, rounds) for _, row in members])
    return [*rows, _exponent(f"exponent {group}", f"growth of the time over {group}", found)]


def _steady_samples(row: Row, rounds: int) -> tuple[float, ...]:
    """A sample a round at the median speed of the machine; see `_timed`."""
    steady = row.values["steady_ms"] or 0.0
    if not row.baseline_ms:  # the first setting itself, which ran beside all others
        return (steady,) * rounds
    ratios = np.array(row.samples_ms) / row.baseline_ms
    return tuple(ratios * steady / np.median(ratios))


def _varied(group: str, each: Configuration) -> float:
    return float(getattr(each, {"size": "size_px"}.get(group, group)))


def _exponent(name: str, label: str, found: tuple[float, float, float]) -> Row:
    names = ("exponent", "exponent_low", "exponent_high")
    values = {key: round(value, 3) for key, value in zip(names, found, strict=True)}
    return Row(name, label, "exponents", values=values)


def _subjects(ours: OurWay, counts: Sequence[int], rounds: int) -> list[Row]:
    """Bytes of a store, and time to find a subject's table in it."""
    rows = []
    pipe = ours.pipe
    params = pipe.sampling_params(num_inference_steps=1, reference_schedule="anchor:200")
    for count in counts:
        pipe.store.clear()
        subjects = [
            pipe.encode_subject(ours.images[0], REFERENCE_PROMPT, noise_seed=seed, params=params)
            for seed in range(count)
        ]
        times = []
        for number in range(10 * rounds):
            start = time.perf_counter()
            pipe(
                PROMPT, subject=subjects[number % count], seed=1, num_inference_steps=1,
                reference_schedule="anchor:200",
            )  # fmt: skip
            times.append(1e3 * (time.perf_counter() - start))
        held = float(pipe.store.stats().device_bytes)
        rows.append(
            Row(
                f"subjects {count}", f"{count} subjects, a picture of one step", "over subjects",
                samples_ms=tuple(times), values={"x": float(count), "table_bytes": held},
            )
        )  # fmt: skip
    return rows


def _time_model(
    fitted: Sequence[tuple[Configuration, Row]], held_out: Sequence[tuple[Configuration, Row]]
) -> list[Row]:
    """Prices, and predictions of held-out settings."""
    found = fit([(each.counts, row.values["steady_ms"] or 0.0) for each, row in fitted])
    prices = {f"{term}_ms": round(p, 5) for term, p in zip(TERMS, found, strict=True)}
    rows = [Row("prices", "prices of the time", "cost model", values=prices)]
    errors = []
    for each, row in held_out:
        predicted = predict(found, each.counts)
        error = predicted / (row.values["steady_ms"] or float("nan")) - 1
        errors.append(abs(error))
        values = dict(row.values) | {
            "predicted_ms": round(predicted, 2),
            "error_share": round(error, 4),
        }
        rows.append(replace(row, group="held out, time", values=values))
    return [*rows, _worst("worst", "worst prediction of a held-out time", errors)]


def _worst(name: str, label: str, errors: Sequence[float]) -> Row:
    values = {"worst_error_share": round(max(errors), 4)}
    return Row(name, label, "cost model, worst", values=values)


def _memory(
    settings: Settings,
    groups: Mapping[str, Sequence[Configuration]],
    fitted: Sequence[Configuration],
    held_out: Sequence[Configuration],
) -> list[Row]:
    """Peaks of processes, their growth, prices, and predictions of held-out settings.

    Every process reads a new subject with the schedule `exact`: tables are as large as they get.
    """
    peaks = _peaks(settings, [*fitted, *held_out])
    known = {each: float(peak) for each, peak in peaks.items() if peak is not None}
    rows = []
    for group, members in groups.items():
        measured = [(each, known[each]) for each in members if each in known]
        xs, ys = [_varied(group, each) for each, _ in measured], [peak for _, peak in measured]
        for (each, peak), x in zip(measured, xs, strict=True):
            rows.append(
                Row(
                    f"memory {group} {x:.0f}", _name(each), f"memory over {group}",
                    values={"x": x, "peak_bytes": peak},
                )
            )  # fmt: skip
        if len(measured) > 2:
            label = f"growth of the memory over {group}"
            rows.append(_exponent(f"memory exponent {group}", label, exponent_range(xs, ys)))
    if len(known) < len(peaks):
        return rows  # a system that does not say how much memory a process took
    mixed = [each for each in fitted if all(each not in members for members in groups.values())]
    rows += [
        Row(f"memory {_name(e)}", _name(e), "memory, mixed", values={"peak_bytes": known[e]})
        for e in mixed
    ]
    prices = fit([(_exact(each).memory_counts, known[each]) for each in fitted])
    named = {f"{term}_bytes": float(round(p)) for term, p in zip(MEMORY_TERMS, prices, strict=True)}
    rows.append(Row("memory prices", "prices of the memory", "cost model", values=named))
    errors = []
    for each in held_out:
        predicted = predict(prices, _exact(each).memory_counts)
        error = predicted / known[each] - 1
        errors.append(abs(error))
        values: dict[str, float | None] = {
            "peak_bytes": known[each],
            "predicted_bytes": float(round(predicted)),
            "error_share": round(error, 4),
        }
        rows.append(Row(f"memory {_name(each)}", _name(each), "held out, memory", values=values))
    return [*rows, _worst("memory worst", "worst prediction of a held-out memory", errors)]


def _exact(each: Configuration) -> Configuration:
    """The same with an entry of the table for each step."""
    return replace(each, entries=each.steps, is_new=True)


def _peaks(settings: Settings, wanted: Sequence[Configuration]) -> dict[Configuration, int | None]:
    """Most memory of `bootpig-rt generate` in a process of its own for each setting, in bytes."""
    peaks: dict[Configuration, int | None] = {}
    with tempfile.TemporaryDirectory() as work:
        references = []
        for index in range(_REFERENCES):
            references.append(Path(work) / f"{index}.png")
            drawing(index).save(references[-1])
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


def _plans(rows: Sequence[Row], about: Mapping[str, Any]) -> list[Row]:
    """Machines for some loads, as `bootpig-rt plan` counts them."""
    model = CostModel.of([SuiteResult(NAME, tuple(rows), settings=about)])
    found = []
    for rate in _LOADS:
        load = Load(rate, Configuration(batch=4), new_subjects=_NEW_SUBJECTS)
        made = plan(model, load)
        label = f"{rate:,} pictures a minute, 25 steps, four at once, {_NEW_SUBJECTS:.0%} new"
        values: dict[str, float | None] = {
            "machines": float(made.machines),
            "machines_at_worst": float(made.machines_at_worst),
            "utilisation_share": load.utilisation,
            "ms_a_picture": round(made.ms_a_picture, 1),
        }
        found.append(Row(f"plan {rate}", label, "plan", values=values))
    return found
