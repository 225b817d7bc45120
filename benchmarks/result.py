"""Results of a suite: rows, what they were measured on, and their JSON form.

The JSON Schema beside this file, `result_schema.json`, describes the same for other readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.intervals import Ratio, median_ratio, spread
from bootpig_rt.benchmarks.machine import Machine, Watch
from bootpig_rt.errors import ParameterError
from bootpig_rt.files.atomic import atomic_write_text

FORMAT_VERSION = 1
SCHEMA = Path(__file__).with_name("result_schema.json")

_LEAST_SAMPLES = {"p95_ms": 20, "p99_ms": 100}
"""Below these a percentile is no more than the largest sample."""

_LEAST_FOR_SPREAD = 4


@dataclass(frozen=True)
class Row:
    """One line of a suite.

    Attributes:
        name: Stable identifier, unique in its suite: `ours_warm`.
        label: For people: "known subject".
        group: Rows that belong together in a table or plot.
        samples_ms: Times of the rounds, per picture where a way draws several; empty where a row
            is no time.
        baseline_ms: Time of the baseline around each sample; empty where none ran beside it.
        ratio_to: Name of the row whose time is divided by this one's.
        ratio: That ratio.
        values: Numbers beside the time: bytes, rates, sizes, in the unit of their name's suffix.
        notes: Words beside the numbers: which backend, why a row is missing.
    """

    name: str
    label: str
    group: str = ""
    samples_ms: tuple[float, ...] = ()
    ratio_to: str | None = None
    ratio: Ratio | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    baseline_ms: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """Half the interquartile range over the median; None where there are too few samples."""
        return spread(self.samples_ms) if len(self.samples_ms) >= _LEAST_FOR_SPREAD else None

    @property
    def median_ms(self) -> float | None:
        """Median of the rounds; None where a row is no time."""
        return float(np.median(self.samples_ms)) if self.samples_ms else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the percentiles that people look for and the samples are enough for."""
        found: dict[str, Any] = {"name": self.name, "label": self.label, "group": self.group}
        if self.samples_ms:
            found["median_ms"] = round(float(np.median(self.samples_ms)), 4)
            for name, least in _LEAST_SAMPLES.items():
                if len(self.samples_ms) >= least:
                    percent = float(name[1:3])
                    found[name] = round(float(np.percentile(self.samples_ms, percent)), 4)
            if self.spread is not None:
                found["spread"] = round(self.spread, 4)
            found |= {
                "min_ms": round(min(self.samples_ms), 4),
                "rounds": len(self.samples_ms),
                "samples_ms": [round(each, 4) for each in self.samples_ms],
            }
        if self.baseline_ms:
            found["baseline_ms"] = [round(each, 4) for each in self.baseline_ms]
        if self.ratio is not None and all(map(math.isfinite, _ends(self.ratio))):
            found |= {
                "ratio_to": self.ratio_to,
                "ratio": round(self.ratio.value, 6),
                "interval": [round(self.ratio.low, 6), round(self.ratio.high, 6)],
            }
        return found | {"values": _finite(self.values), "notes": dict(self.notes)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Row:
        """The row of `to_dict`."""
        ratio = None
        if "ratio" in found:
            ratio = Ratio(found["ratio"], *found["interval"])
        return cls(
            name=found["name"],
            label=found["label"],
            group=found["group"],
            samples_ms=tuple(found.get("samples_ms", ())),
            baseline_ms=tuple(found.get("baseline_ms", ())),
            ratio_to=found.get("ratio_to"),
            ratio=ratio,
            values=found["values"],
            notes=found["notes"],
        )


@dataclass(frozen=True)
class Check:
    """A number that must not, or, as a goal, should not, be above a limit.

    Attributes:
        name: What was compared or measured.
        value: What was found; NaN and infinity come back from a file as NaN.
        limit: The largest that would be right, finite.
    """

    name: str
    value: float
    limit: float

    @property
    def is_ok(self) -> bool:
        """Is the value within its limit? NaN is not."""
        return self.value <= self.limit


@dataclass(frozen=True)
class SuiteResult:
    """What one run of a suite found.

    Attributes:
        suite: Its name.
        rows: In the order in which they are shown.
        settings: What was measured: pair, steps, size, rounds, threads.
        checks: What was compared before times were taken; one that is wrong makes them worthless.
        machine: Hardware, versions, commit, command and load.
        goals: Times and ratios that are aimed at. One that is missed is shown, and fails nothing.
    """

    suite: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    machine: Machine | None = None
    goals: tuple[Check, ...] = ()

    def measured_on(self, watch: Watch) -> SuiteResult:
        """The same with the machine that was watched, and the noise of the rows."""
        spreads = [row.spread for row in self.rows if row.spread is not None]
        return replace(self, machine=watch.machine(spreads))

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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "suite": self.suite,
            "machine": None if self.machine is None else asdict(self.machine),
            "settings": _finite(self.settings),
            "checks": [_check_to_dict(check) for check in self.checks],
            "goals": [_check_to_dict(goal) for goal in self.goals],
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> SuiteResult:
        """The result of `to_dict`."""
        machine = found["machine"]
        return cls(
            suite=found["suite"],
            rows=tuple(Row.from_dict(row) for row in found["rows"]),
            settings=found["settings"],
            checks=_checks(found["checks"]),
            machine=None if machine is None else Machine(**machine),
            goals=_checks(found.get("goals", ())),
        )


def with_ratios(rows: Sequence[Row], *, to: str) -> tuple[Row, ...]:
    """The rows, each with the ratio of the time of row `to` over its own, paired by round.

    For ways that were timed without a baseline beside them. Rows without a time, or with another
    number of rounds, stay as they are.

    Raises:
        ParameterError: No row of that name.
    """
    base = next((row for row in rows if row.name == to), None)
    if base is None:
        names = ", ".join(row.name for row in rows) or "no row"
        raise ParameterError(f"no row {to!r} to compare with, expected it among {names}")
    return tuple(
        replace(row, ratio_to=to, ratio=median_ratio(base.samples_ms, row.samples_ms))
        if row.samples_ms and len(row.samples_ms) == len(base.samples_ms)
        else row
        for row in rows
    )


def save_results(results: Sequence[SuiteResult], path: Path) -> None:
    """Write results as one JSON file, whole or not at all."""
    text = json.dumps([result.to_dict() for result in results], indent=1, allow_nan=False)
    atomic_write_text(path, text + "\n")


def load_results(path: Path) -> list[SuiteResult]:
    """Read what `save_results` wrote.

    Raises:
        ParameterError: No such file, or it is not such a file.
    """
    again = "make one with `bootpig-rt bench --suite NAME --output FILE`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(f"no file {path}; {again}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ParameterError(f"cannot read {path}: {error}; {again}") from None
    try:
        versions = {one["format_version"] for one in found}
        if versions - {FORMAT_VERSION}:
            raise ParameterError(
                f"{path} has format version {sorted(versions)}, expected {FORMAT_VERSION}; {again}"
            )
        return [SuiteResult.from_dict(one) for one in found]
    except (KeyError, TypeError, ValueError) as error:
        raise ParameterError(
            f"{path} holds no results of benchmarks ({type(error).__name__}: {error}); {again}"
        ) from None


def _finite(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinity, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def _check_to_dict(check: Check) -> dict[str, Any]:
    return _finite(asdict(check)) | {"is_ok": check.is_ok}


def _checks(found: Sequence[Mapping[str, Any]]) -> tuple[Check, ...]:
    return tuple(Check(each["name"], _number(each["value"]), each["limit"]) for each in found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _ends(ratio: Ratio) -> tuple[float, float, float]:
    return ratio.value, ratio.low, ratio.high
