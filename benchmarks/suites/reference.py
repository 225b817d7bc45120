"""Suite `reference`: what each reference schedule, storage type and merge costs and gives."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bootpig_rt.backends.host_table import TableDtype
from bootpig_rt.benchmarks.judged import Jury
from bootpig_rt.benchmarks.ours import OurWay, psnr_db, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult, make_check
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Way
from bootpig_rt.errors import NumericalError
from bootpig_rt.reference.table_options import TableOptions

HELP = "reference schedules, storage types and merges: time, bytes, and how good pictures are"

SCHEDULES = (
    "exact", "stride:2", "stride:5", "stride:13", "clean", "anchor:200",
    "exact+window:0-0.5", "exact+window:0.2-1", "clean+window:0-0.5", "clean+window:0.2-1",
)  # fmt: skip
DTYPES: tuple[TableDtype, ...] = ("float16", "bfloat16", "float8", "int8")
MERGES = ("argmax", "softmax", "mean", "concat")

_STREAM_BYTES = 4 << 20
"""Less than a table of the packaged pair: its entries are copied step by step."""


@dataclass(frozen=True)
class _Case:
    """A way to read the reference."""

    name: str
    schedule: str
    group: str
    tables: TableOptions = field(default_factory=TableOptions)

    @property
    def picture(self) -> dict[str, Any]:
        return {"reference_schedule": self.schedule}


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Check the tables, time all cases in turn, judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
        NumericalError: A table has other bytes than the formula says, or a known subject was read
            again.
    """
    bench = Bench(settings, journal)
    with torch_threads(settings.threads):
        every = _cases(settings.is_smoke)
        cases = [c for c in every if settings.is_wanted(c.name) or c is every[0]]
        load = functools.cache(partial(_load, settings))
        ways = {case.name: load(case.tables) for case in cases}
        exact = ways[cases[0].name]
        checks = [check for case in cases for check in _table_checks(case, ways[case.name])]
        wrong = [f"{check.name}: {check.value:g}" for check in checks if not check.is_ok]
        if wrong:
            raise NumericalError(f"nothing was timed: {'; '.join(wrong)}")
        offered = [way for case in every for way in _timed(case, load)]
        timed = bench.rows("schedules", offered, baseline="exact known")
        settings.check_only([*bench.names, "merge"])
        jury = Jury(settings, exact.config.sample_size_px)
        expected = np.asarray(exact.warm(**cases[0].picture).images[0])
        rows = list(timed)
        judged = {}
        for case in cases:
            ours = ways[case.name]
            pixels = psnr_db(np.asarray(ours.warm(**case.picture).images[0]), expected)
            judged[case.name] = jury.judge(ours, case.name, **case.picture)
            base = judged["exact"] if case is not cases[0] else None
            rows.append(
                Row(case.name, f"`{case.name}`", case.group).with_values(
                    table_bytes=float(ours.table_bytes(**case.picture)[0]),
                    from_exact_db=round(pixels, 1),
                    **judged[case.name].values(base),
                )
            )
        rows += _merges(settings, jury, exact)
    config = exact.config
    return SuiteResult(
        "reference",
        tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1,
        },
        checks=tuple(checks),
    )  # fmt: skip


def _load(settings: Settings, tables: TableOptions) -> OurWay:
    return OurWay(settings.pair, threads=settings.threads, tables=tables)


def _cases(is_smoke: bool) -> list[_Case]:
    schedules = ("exact", "clean") if is_smoke else SCHEDULES
    dtypes = DTYPES[:1] if is_smoke else DTYPES
    cases = [_Case(schedule, schedule, "schedules") for schedule in schedules]
    cases += [
        _Case(f"exact {dtype}", "exact", "storage", TableOptions(dtype=dtype)) for dtype in dtypes
    ]
    streamed = TableOptions(budget_bytes=_STREAM_BYTES)
    return [*cases, _Case("exact streamed", "exact", "storage", streamed)]


def _timed(case: _Case, load: Any) -> list[Way]:
    """A known and a new subject; ratios are to a known one that is read by `exact`."""

    def make(call: str) -> Ready:
        ours = load(case.tables)
        return Ready(partial(getattr(ours, call), **case.picture))

    return [
        Way(f"{case.name} known", f"`{case.name}`, known subject", partial(make, "warm"),
            group="times"),
        Way(f"{case.name} new", f"`{case.name}`, new subject", partial(make, "cold"),
            group="times"),
    ]  # fmt: skip


def _table_checks(case: _Case, ours: OurWay) -> list[Any]:
    """Bytes held against the formula that `--dry-run` prints; a known subject is not read again."""
    held, formula = ours.table_bytes(**case.picture)
    again = ours.warm(**case.picture).reference_passes
    return [
        make_check(f"{case.name}: bytes held beside the formula", float(abs(held - formula)), 0.0),
        make_check(f"{case.name}: reference passes of a known subject", float(again), 0.0),
    ]


def _merges(settings: Settings, jury: Jury, ours: OurWay) -> list[Row]:
    """Merges over several references of one subject."""
    rows: list[Row] = []
    merges, counts = (MERGES[:1], (2,)) if settings.is_smoke else (MERGES, (2, 3, 4))
    if settings.is_wanted("merge"):
        group = "merges of several references"
        one = jury.judge(ours, "one reference", shots=jury.shots_with(1))
        rows.append(Row("merge/1", "one reference, all merges agree", group, values=one.values()))
        for merge in merges:
            for count in counts:
                name = f"{merge} of {count} references"
                found = jury.judge(ours, name, shots=jury.shots_with(count), merge=merge)
                rows.append(Row(f"merge/{merge}_{count}", name, group, values=found.values(one)))
    return rows
