"""Ratios of times with bootstrap intervals, and how much times scatter. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000

_Z_95 = 1.959964

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How much faster one way is than another, with its 95 % interval.

    Attributes:
        value: Time of the baseline over the time of the way: above 1 is faster.
        low: 2.5th percentile of the bootstrap over pairs.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float

    @property
    def log_error(self) -> float:
        """Standard error of the logarithm, from the interval; infinite where an end is 0."""
        if self.low <= 0 or not math.isfinite(self.high):
            return math.inf
        return math.log(self.high / self.low) / (2 * _Z_95)


def median_ratio(
    baseline_ms: Sequence[float] | Floats, way_ms: Sequence[float] | Floats, *, seed: int = 0
) -> Ratio:
    """Median of the ratios of pairs of runs that lie close to each other in time.

    What slowed the machine during a pair slowed both of its runs, and cancels. The interval is a
    bootstrap of the same estimator: pairs are drawn anew, and the median of their ratios taken.

    Args:
        baseline_ms: Times of the baseline, one a pair, [K].
        way_ms: Times of the way in the same pairs, [K].
        seed: Of the bootstrap.

    Raises:
        ValueError: No pairs, other numbers of times, or a time that is not above zero.
    """
    base, way = np.asarray(baseline_ms, dtype=float), np.asarray(way_ms, dtype=float)
    if base.shape != way.shape or base.ndim != 1 or not len(base):
        raise ValueError(
            f"times of shape {base.shape} and {way.shape}, expected the same number for both"
        )
    if min(base.min(), way.min()) <= 0:
        raise ValueError("a time is zero or less; the clock is too coarse for this way")
    ratios = base / way
    picks = np.random.default_rng(seed).integers(len(base), size=(RESAMPLES, len(base)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def spread(times_ms: Sequence[float] | Floats) -> float:
    """Half the range from 25th to 75th percentile, over the median: the noise of a way."""
    low, middle, high = np.percentile(np.asarray(times_ms, dtype=float), (25, 50, 75))
    return float((high - low) / 2 / middle)
