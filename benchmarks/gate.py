"""The gate of a release: ratios of this run beside those of an earlier one.

Times of two machines cannot be compared, ratios to a baseline that ran beside them can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.errors import ParameterError

FALSE_ALARMS = 0.05
"""Chance that a run of an unchanged build fails, over all rows together."""

POWER = 0.8
"""Chance that a fall of `Verdict.visible` is found."""

_LEAST_SAMPLES = 5
"""Fewer say too little about how much they scatter."""

State: TypeAlias = Literal["ok", "worse", "blind", "gone"]
_WORDS = {"ok": "ok   ", "worse": "WORSE", "blind": "BLIND", "gone": "GONE "}


@dataclass(frozen=True)
class Verdict:
    """One ratio then and now.

    Attributes:
        suite: Where the row is.
        name: Of the row.
        before: Its ratio then.
        now: Its ratio now; None where the row is gone.
        state: `worse`: it fell by more than was allowed, and by more than the noise of the two runs
            explains. `blind`: it did not, but a fall of `max_regression` could hide in the noise.
            `gone`: this run has no such ratio.
        visible: The smallest fall, as a share, that is found four times in five; infinite where
            there are too few samples.
        reason: Why a row is gone.
    """

    suite: str
    name: str
    before: Ratio
    now: Ratio | None
    state: State
    visible: float = math.inf
    reason: str = ""

    @property
    def fails(self) -> bool:
        """Should the release stop?"""
        return self.state in ("worse", "gone")

    def __str__(self) -> str:
        """A line for people."""
        head = f"{_WORDS[self.state]} {self.suite}/{self.name}: {self.before.value:.3g} -> "
        if self.now is None:
            return f"{head}{self.reason}"
        change = self.now.value / self.before.value - 1
        visible = "too few rounds" if math.isinf(self.visible) else f"sees {self.visible:.1%}"
        return (
            f"{head}{self.now.value:.3g} ({change:+.1%}), "
            f"now {self.now.low:.3g} to {self.now.high:.3g}, {visible}"
        )


def compare(
    before: Sequence[SuiteResult],
    now: Sequence[SuiteResult],
    *,
    max_regression: float,
    only: Sequence[str] = (),
) -> list[Verdict]:
    """Compare all ratios of the earlier run, in suites that both have.

    A ratio is worse where it fell by more than `max_regression` and a one-sided z-test on its
    logarithm says that it fell at all. Standard errors come from the intervals of both runs, added
    in quadrature. The level of a row is `FALSE_ALARMS` over the number of rows: many rows do not
    mean many false alarms.

    Args:
        before: The earlier run.
        now: This run.
        max_regression: Share that a ratio may fall by, 0 to 1.
        only: Beginnings of the names that this run was asked for; others are not missed.

    Raises:
        ParameterError: The runs have no ratio in common, or measured different things.
    """
    pairs: list[tuple[SuiteResult, Row, Row | None]] = []
    for current in now:
        for earlier in before:
            if (earlier.suite, earlier.device) != (current.suite, current.device):
                continue
            _check_alike(earlier, current)
            found = {row.name: row for row in current.rows}
            pairs += [
                (current, row, found.get(row.name))
                for row in earlier.rows
                if row.ratio is not None
                and row.name != row.ratio.to
                and (not only or row.name.startswith(tuple(only)))
            ]
    if not any(row is not None and row.ratio is not None for _, _, row in pairs):
        suites = ", ".join(sorted({each.suite for each in before})) or "nothing"
        raise ParameterError(
            f"no ratio to compare: the earlier run holds {suites}; run the same suites and rows"
        )
    level = FALSE_ALARMS / len(pairs)
    return [_verdict(current.suite, old, new, max_regression, level) for current, old, new in pairs]


def _verdict(suite: str, old: Row, new: Row | None, limit: float, level: float) -> Verdict:
    assert old.ratio is not None
    if new is None or new.ratio is None or new.ratio.to != old.ratio.to:
        reason = "no such row" if new is None else new.status or "no ratio"
        if new is not None and new.ratio is not None:
            reason = f"a ratio to {new.ratio.to}, before to {old.ratio.to}"
        return Verdict(suite, old.name, old.ratio, None, "gone", reason=reason)
    error = math.inf
    if min(len(old.samples_ms), len(new.samples_ms)) >= _LEAST_SAMPLES:
        error = math.hypot(old.ratio.log_error, new.ratio.log_error)
    critical = NormalDist().inv_cdf(1 - level)
    fall = math.log(old.ratio.value / new.ratio.value)
    allowed = -math.log(1 - limit)
    visible = math.inf
    if math.isfinite(error):
        visible = 1 - math.exp(-(critical + NormalDist().inv_cdf(POWER)) * error)
    state: State = "ok"
    if fall > allowed and fall > critical * error:
        state = "worse"
    elif visible > limit:
        state = "blind"
    return Verdict(suite, old.name, old.ratio, new.ratio, state, visible)


def _check_alike(earlier: SuiteResult, current: SuiteResult) -> None:
    for name in ("pair", "steps", "solver", "size_px", "references"):
        _check_equal(current.suite, name, earlier.settings.get(name), current.settings.get(name))
    if earlier.machine is not None and current.machine is not None:
        threads = earlier.machine.threads, current.machine.threads
        _check_equal(current.suite, "threads", *threads)


def _check_equal(suite: str, name: str, old: object, new: object) -> None:
    if old != new:
        raise ParameterError(
            f"suite {suite}: the earlier run measured {name} {old!r}, this one {new!r}; measure "
            "the same"
        )
