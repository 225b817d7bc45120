"""Results of a suite: rows, what they were measured on, and their JSON form. One schema for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from bootpig_rt.benchmarks.machine import Machine
from bootpig_rt.benchmarks.stats import Ratio, median_ratio, spread
from bootpig_rt.errors import ParameterError
from bootpig_rt.files.atomic import atomic_write_text

FORMAT_VERSION = 2
LEAST_ROUNDS = 10
"""Fewer do not support a ratio with an interval: they are refused, but with `--smoke`."""

_LEAST_FOR_SPREAD = 4


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a suite.

    Attributes:
        name: Stable identifier, unique in its suite: `ours_warm`.
        label: For people: "known subject".
        group: Rows that belong together in a table or plot.
        samples_ms: Times of the rounds, per picture where a way draws several; empty where a row
            is no time.
        baseline_ms: Time of the baseline around each sample; empty where none ran beside it.
        ratio: Time of the baseline over that of this row.
        values: Numbers beside the time: bytes, rates, sizes, in the unit of their name's suffix.
            `NAME_low` and `NAME_high` are the ends of the 95 % interval of NAME.
        status: Why there is no time: `not available: ...`, `wrong: ...`; empty where there is one.
        notes: What to know about the row.
    """

    name: str
    label: str
    group: str = ""
    samples_ms: tuple[float, ...] = ()
    baseline_ms: tuple[float, ...] = ()
    ratio: Ratio | None = None
    values: dict[str, float | None] = {}
    status: str = ""
    notes: str = ""

    @property
    def median_ms(self) -> float | None:
        """Median of the rounds; None where a row is no time."""
        return float(np.median(self.samples_ms)) if self.samples_ms else None

    @property
    def spread(self) -> float | None:
        """Half the interquartile range over the median; None where there are too few samples."""
        return spread(self.samples_ms) if len(self.samples_ms) >= _LEAST_FOR_SPREAD else None

    def with_values(self, **values: float | None) -> Row:
        """The same with more numbers."""
        return msgspec.structs.replace(self, values=self.values | values)


class Check(msgspec.Struct, frozen=True):
    """What a comparison ahead of the clock found, beside the largest that would be right.

    Attributes:
        name: What was compared.
        value: The difference that was measured; None: it was NaN or infinite.
        limit: At most five times what this comparison is known to give, see `truth.DIFFERENCES`.
    """

    name: str
    value: float | None
    limit: float

    @property
    def is_ok(self) -> bool:
        """Is the value within its limit?"""
        return self.value is not None and self.value <= self.limit


class Target(msgspec.Struct, frozen=True):
    """What was aimed at, beside what was measured.

    Attributes:
        what: For people, with its unit: "known subject, times the published way in float32".
        wanted: The bound.
        found: What was measured; None: nothing was.
        is_most: The bound is the largest that is right; else the smallest.
    """

    what: str
    wanted: float
    found: float | None
    is_most: bool = False

    @property
    def verdict(self) -> Literal["met", "missed", "not measured"]:
        """Whether it was reached."""
        if self.found is None:
            return "not measured"
        is_met = self.found <= self.wanted if self.is_most else self.found >= self.wanted
        return "met" if is_met else "missed"

    @property
    def bound(self) -> str:
        """The bound as text: `at least 6`."""
        return f"at {'most' if self.is_most else 'least'} {self.wanted:g}"


class SuiteResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one run of a suite found.

    Attributes:
        suite: Its name.
        rows: In the order in which they are shown.
        settings: What was measured: pair, steps, size, rounds, precision.
        checks: What was compared before times were taken; one that is wrong makes them worthless.
        machine: Hardware, versions, commit, command and load; None: not measured yet.
        remarks: What a reader must know, such as a baseline that was not run.
        targets: What was aimed at.
        format_version: Of the file.
    """

    suite: str
    rows: tuple[Row, ...]
    settings: dict[str, Any] = {}
    checks: tuple[Check, ...] = ()
    machine: Machine | None = None
    remarks: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return str(self.settings.get("device", "cpu"))

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ParameterError: There is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows)
        raise ParameterError(f"no row {name!r} in suite {self.suite!r}, expected one of {names}")

    def wrong(self) -> list[str]:
        """Checks that failed, and ways of ours that could not be measured."""
        found = [check.name for check in self.checks if not check.is_ok]
        return found + [
            f"{row.name}: {row.status}"
            for row in self.rows
            if row.name.startswith("ours") and row.status.startswith(("failed", "wrong"))
        ]


def make_check(name: str, value: float, limit: float) -> Check:
    """A check to four digits; a value that is not finite becomes None, which is never right."""
    return Check(name, _short(value), _short(limit) or 0.0)


def ratio_of_rows(way: Row, to: Row) -> Ratio | None:
    """Time of one row over that of another of the same rounds, each against the same baseline.

    Both were measured beside runs of one baseline, so the ratio of their ratios is free of what
    slowed the machine.
    """
    if not way.samples_ms or len(way.samples_ms) != len(to.samples_ms):
        return None
    mine, theirs = (
        np.array(row.samples_ms) / (row.baseline_ms or (1.0,) * len(row.samples_ms))
        for row in (way, to)
    )
    return median_ratio(to.name, theirs, mine)


def save_results(results: Sequence[SuiteResult], path: Path) -> None:
    """Write results as one JSON file, a row a line, whole or not at all."""
    parts = []
    for result in results:
        rows = [msgspec.structs.replace(row, **_shortened(row)) for row in result.rows]
        head = msgspec.json.encode(msgspec.structs.replace(result, rows=())).decode()
        lines = ",\n".join(msgspec.json.encode(row).decode() for row in rows)
        head = msgspec.json.format(head, indent=1)
        parts.append(head.replace('"rows": []', f'"rows": [\n{lines}\n]', 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "[" + ",\n".join(parts) + "]\n")


def load_results(path: Path) -> list[SuiteResult]:
    """Read what `save_results` wrote.

    Raises:
        ParameterError: No such file, or it is not such a file.
    """
    again = "make one with `bootpig-rt bench --suite NAME --output FILE`"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[SuiteResult])
    except FileNotFoundError:
        raise ParameterError(f"no file {path}; {again}") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ParameterError(f"{path} holds no results of benchmarks: {error}; {again}") from None
    versions = {result.format_version for result in found} - {FORMAT_VERSION}
    if versions:
        raise ParameterError(
            f"{path} has format version {sorted(versions)}, expected {FORMAT_VERSION}; {again}"
        )
    return found


def _shortened(row: Row) -> dict[str, Any]:
    """Samples and values to the digits that are worth bytes."""
    return {
        "samples_ms": tuple(_short(each) or 0.0 for each in row.samples_ms),
        "baseline_ms": tuple(_short(each) or 0.0 for each in row.baseline_ms),
        "values": {name: _short(value, digits=6) for name, value in row.values.items()},
    }


def _short(value: float | None, *, digits: int = 4) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
