"""The gate of a release: ratios of this run beside those of an earlier one.

Times of two machines cannot be compared, ratios to a baseline that ran in the same rounds can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootpig_rt.benchmarks.intervals import Ratio
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.errors import ParameterError


@dataclass(frozen=True)
class Verdict:
    """One ratio then and now.

    Attributes:
        suite: Where the row is.
        name: Of the row.
        before: Its ratio then.
        now: Its ratio now.
        is_worse: It fell by more than was allowed, and by more than the rounds of the two runs
            scatter.
    """

    suite: str
    name: str
    before: Ratio
    now: Ratio
    is_worse: bool

    def __str__(self) -> str:
        """A line for people."""
        change = self.now.value / self.before.value - 1
        verdict = "WORSE" if self.is_worse else "ok   "
        return (
            f"{verdict} {self.suite}/{self.name}: {self.before.value:.2f} -> {self.now.value:.2f} "
            f"({change:+.1%}), now {self.now.low:.2f} to {self.now.high:.2f}"
        )


def compare(
    before: Sequence[SuiteResult], now: Sequence[SuiteResult], *, max_regression: float
) -> list[Verdict]:
    """Compare all ratios that both runs have.

    A ratio is worse where even the upper end of its interval lies below the lower end of the
    earlier interval, lowered by `max_regression`, and its median fell by more than that: noise
    alone does not fail a release, a slowdown beyond the limit does.

    Args:
        before: The earlier run.
        now: This run.
        max_regression: Share that a ratio may fall by, 0 to 1.

    Raises:
        ParameterError: The runs have no ratio in common, or measured different things.
    """
    verdicts = []
    for current in now:
        for earlier in before:
            if earlier.suite != current.suite:
                continue
            _check_alike(earlier, current)
            verdicts += _verdicts(earlier, current, max_regression)
    if not verdicts:
        suites = ", ".join(sorted({each.suite for each in before})) or "nothing"
        raise ParameterError(
            f"no ratio to compare: the earlier run holds {suites}; run the same suites"
        )
    return verdicts


def _verdicts(earlier: SuiteResult, current: SuiteResult, limit: float) -> list[Verdict]:
    known = {row.name: row for row in earlier.rows if row.ratio is not None}
    found = []
    for row in current.rows:
        old = known.get(row.name)
        if row.ratio is None or old is None or old.ratio is None or row.name == row.ratio_to:
            continue
        if row.ratio_to != old.ratio_to:
            continue
        floor = 1 - limit
        is_worse = (
            row.ratio.value < old.ratio.value * floor and row.ratio.high < old.ratio.low * floor
        )
        found.append(Verdict(current.suite, row.name, old.ratio, row.ratio, is_worse))
    return found


def _check_alike(earlier: SuiteResult, current: SuiteResult) -> None:
    for name in ("pair", "steps", "solver", "size_px", "references"):
        old, new = earlier.settings.get(name), current.settings.get(name)
        if old != new:
            raise ParameterError(
                f"suite {current.suite}: the earlier run measured {name} {old!r}, this one "
                f"{new!r}; measure the same"
            )
