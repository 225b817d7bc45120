"""Suite `reference`: what each reference schedule, storage type and merge costs and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bootpig_rt.backends.torch_backend import load
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.judged import Jury, Quality, psnr_db
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads

NAME = "reference"
HELP = "reference schedules, storage types and merges: time, bytes, identity and scenes"

SCHEDULES = (
    "exact", "stride:2", "stride:5", "stride:13", "clean", "anchor:200",
    "clean+window:0-0.5", "clean+window:0.2-1",
)  # fmt: skip
DTYPES = ("float16", "bfloat16", "float8", "int8")
MERGES = ("argmax", "softmax", "mean", "concat")

_STREAM_BYTES = 4 << 20
"""Less than a table of the packaged pair: its entries are copied step by step."""

_LARGEST_PIXEL = 255.0


@dataclass(frozen=True)
class _Case:
    """A way to read the reference."""

    name: str
    label: str
    schedule: str
    group: str
    options: dict[str, Any]


def run(settings: Settings) -> SuiteResult:
    """Time all cases in turn beside the published way, then judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there.
    """
    with torch_threads(settings.threads):
        cases = [case for case in _cases(settings.is_smoke) if settings.is_wanted(case.name)]
        pipes = _pipes(settings, cases)
        config = pipes[_key(cases[0])].pipe.spec.config
        times = _times(settings, cases, pipes)
        measured = _distances(cases, pipes)
        rows = [replace(row, values=dict(row.values) | measured.get(row.name, {})) for row in times]
        jury = Jury(
            settings.data,
            settings.work,
            size_px=config.sample_size_px,
            suite="tiny" if settings.is_smoke else "small",
            prompts=2 if settings.is_smoke else 4,
        )
        judged: dict[str, Quality] = {}
        for number, case in enumerate(cases):
            if "table_budget_bytes" in case.options:
                judged[case.name] = judged["exact"]  # the same numbers, see the distance
                continue
            settings.progress(f"judging {case.name}", number, len(cases))
            judged[case.name] = jury.judge(pipes[_key(case)].pipe, reference_schedule=case.schedule)
        rows = [
            replace(row, values=dict(row.values) | judged[row.name].values())
            if row.name in judged
            else row
            for row in rows
        ]
        if settings.is_wanted("merge"):
            rows += _merges(settings, jury, pipes[_key(cases[0])])
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "rounds": settings.rounds,
        },
        checks=tuple(_table_checks(cases, pipes)),
    )  # fmt: skip


def _cases(is_smoke: bool) -> list[_Case]:
    schedules = ("exact", "clean") if is_smoke else SCHEDULES
    dtypes = ("int8",) if is_smoke else DTYPES
    cases = [_Case(name, name, name, "schedule", {}) for name in schedules]
    cases += [
        _Case(
            f"exact {dtype}", f"exact, table in {dtype}", "exact", "storage", {"table_dtype": dtype}
        )
        for dtype in dtypes
    ]
    streamed = {"table_budget_bytes": _STREAM_BYTES}
    return [*cases, _Case("exact streamed", "exact, table streamed", "exact", "storage", streamed)]


def _key(case: _Case) -> str:
    return repr(case.options)


def _pipes(settings: Settings, cases: list[_Case]) -> dict[str, OurWay]:
    return {
        _key(case): OurWay(settings.pair, threads=settings.threads, **case.options)
        for case in cases
    }


def _times(settings: Settings, cases: list[_Case], pipes: dict[str, OurWay]) -> list[Row]:
    """Warm, cold and four pictures of each schedule; warm of each storage type."""
    config = pipes[_key(cases[0])].pipe.spec.config
    published = PublishedWay(
        load(settings.pair, "cpu", None), steps=config.default_steps, solver=config.default_solver
    )
    published.install()
    ways = [Way("published", "published way", lambda: published.picture(drawing()), group="")]
    for case in cases:
        ours = pipes[_key(case)]
        options: dict[str, Any] = {"reference_schedule": case.schedule}
        ways.append(
            Way(
                case.name,
                case.label,
                partial(ours.warm, **options),
                group=f"{case.group}, known subject",
            )
        )
        if case.group == "schedule":
            ways.append(
                Way(
                    f"{case.name}/cold",
                    case.label,
                    partial(ours.cold, **options),
                    group="schedule, new subject",
                )
            )
            ways.append(
                Way(
                    f"{case.name}/four",
                    case.label,
                    partial(ours.warm, 4, **options),
                    4,
                    group="schedule, four pictures",
                )
            )
    rows = time_ways(ways, settings.rounds, progress=settings.progress)
    return list(with_ratios(rows, to="published"))


def _distances(cases: list[_Case], pipes: dict[str, OurWay]) -> dict[str, dict[str, float | None]]:
    """Bytes of each case's table, and how far its latents and pictures are from `exact`."""
    exact = pipes[_key(cases[0])]
    expected = _latents(exact, "exact")
    picture = np.asarray(exact.warm(reference_schedule="exact").images[0])
    found: dict[str, dict[str, float | None]] = {}
    for case in cases:
        ours = pipes[_key(case)]
        latents = _latents(ours, case.schedule)
        drawn = np.asarray(ours.warm(reference_schedule=case.schedule).images[0])
        scale = float(expected.max() - expected.min())
        found[case.name] = {
            "table_bytes": float(_table_bytes(ours, case.schedule)),
            "latents_db": round(psnr_db(latents, expected, largest=scale), 1),
            "pixels_db": round(psnr_db(drawn, picture, largest=_LARGEST_PIXEL), 1),
        }
    return found


def _latents(ours: OurWay, schedule: str) -> np.ndarray[Any, Any]:
    backend, batch = ours.recorded_batch(reference_schedule=schedule)
    run = backend.start(batch)
    for index in range(batch.solver.num_steps):
        run.step(index)
    return run.latents()


def _table_bytes(ours: OurWay, schedule: str) -> int:
    """What the store holds when it has this one table."""
    ours.pipe.store.clear()
    ours.warm(reference_schedule=schedule)
    stats = ours.pipe.store.stats()
    return stats.device_bytes + stats.host_bytes


def _table_checks(cases: list[_Case], pipes: dict[str, OurWay]) -> list[Check]:
    """The bytes that are held against the formula that `--dry-run` prints."""
    checks = []
    for case in cases:
        if "table_budget_bytes" in case.options:
            continue  # the store does not hold what is streamed
        ours = pipes[_key(case)]
        params = ours.pipe.sampling_params(reference_schedule=case.schedule)
        formula = ours.pipe.table_bytes(1, params)
        off = abs(_table_bytes(ours, case.schedule) - formula)
        checks.append(Check(f"table bytes of {case.name}: held, formula", float(off), 0.0))
    return checks


def _merges(settings: Settings, jury: Jury, ours: OurWay) -> list[Row]:
    """Merges over several references, and references of two subjects at once."""
    rows = []
    counts = (2,) if settings.is_smoke else (2, 4)
    one = jury.judge(ours.pipe, shots=jury.shots_with(1))
    rows.append(Row("merge/1", "one reference", "references and merges", values=one.values()))
    for merge in MERGES[:1] if settings.is_smoke else MERGES:
        for count in counts:
            settings.progress(f"judging {merge} of {count}", 0, 1)
            quality = jury.judge(ours.pipe, shots=jury.shots_with(count), merge=merge)
            label = f"{merge} of {count} references"
            rows.append(
                Row(
                    f"merge/{merge}_{count}",
                    label,
                    "references and merges",
                    values=quality.values(),
                )
            )
    for merge in MERGES[:1] if settings.is_smoke else MERGES:
        quality = jury.judge(ours.pipe, shots=jury.shots_with(1), merge=merge, distractors=1)
        label = f"{merge}: own and another subject's picture"
        rows.append(Row(f"merge/{merge}_two", label, "two subjects", values=quality.values()))
    return rows
