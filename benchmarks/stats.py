"""Ratios of times with bootstrap intervals, and how many digits of a number are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
_Z_95 = 1.959964

Floats = npt.NDArray[np.float64]


class Ratio(msgspec.Struct, frozen=True):
    """How much faster one way is than another, with its 95 % interval.

    Attributes:
        to: Name of the other way.
        value: Time of the other way over the time of this one: above 1 is faster.
        low: 2.5th percentile of the bootstrap over pairs of runs.
        high: 97.5th percentile.
    """

    to: str
    value: float
    low: float
    high: float

    @property
    def log_error(self) -> float:
        """Standard error of the logarithm, from the interval; infinite where an end is 0."""
        if self.low <= 0 or not math.isfinite(self.high):
            return math.inf
        return math.log(self.high / self.low) / (2 * _Z_95)

    def __str__(self) -> str:
        """To the digits that the interval supports: `3.2x (2.9 to 3.4)`."""
        value, low, high = (in_digits(x, self.low, self.high) for x in _ends(self))
        return f"{value}x ({low} to {high})"


def median_ratio(
    to: str,
    baseline_ms: Sequence[float] | Floats,
    way_ms: Sequence[float] | Floats,
    *,
    seed: int = 0,
) -> Ratio:
    """Median of the ratios of pairs of runs that lie close to each other in time.

    What slowed the machine during a pair slowed both of its runs, and cancels. The interval is a
    bootstrap of the same estimator: pairs are drawn anew, and the median of their ratios taken.

    Args:
        to: Name of the baseline.
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
    return Ratio(to, float(np.median(ratios)), float(low), float(high))


def ratio_of_medians(
    to: str,
    baseline_ms: Sequence[float] | Floats,
    way_ms: Sequence[float] | Floats,
    *,
    seed: int = 0,
) -> Ratio:
    """Ratio of the medians of two ways that did not run in turn: each is drawn anew by itself.

    Args:
        to: Name of the baseline.
        baseline_ms: Its times, [K].
        way_ms: Those of the way, [J].
        seed: Of the bootstrap.

    Raises:
        ValueError: No times, or one that is not above zero.
    """
    base, way = np.asarray(baseline_ms, dtype=float), np.asarray(way_ms, dtype=float)
    if not len(base) or not len(way):
        raise ValueError("no times to compare")
    if min(base.min(), way.min()) <= 0:
        raise ValueError("a time is zero or less; the clock is too coarse for this way")
    generator = np.random.default_rng(seed)

    def medians(times: Floats) -> Floats:
        picks = generator.integers(len(times), size=(RESAMPLES, len(times)))
        found: Floats = np.median(times[picks], axis=1)
        return found

    low, high = np.percentile(medians(base) / medians(way), (2.5, 97.5))
    return Ratio(to, float(np.median(base) / np.median(way)), float(low), float(high))


def spread(times_ms: Sequence[float] | Floats) -> float:
    """Half the range from 25th to 75th percentile, over the median: the noise of a way."""
    low, middle, high = np.percentile(np.asarray(times_ms, dtype=float), (25, 50, 75))
    return float((high - low) / 2 / middle)


def in_digits(value: float, low: float, high: float) -> str:
    """A number to the place of the first digit of its interval's width.

    An interval of 2.94 to 3.41 supports one place behind the point: `3.2`. One of 2.1 to 4.4
    supports none: `3`. There are two places at most, three of numbers below a tenth.
    """
    width, most = high - low, 2 if abs(value) >= 0.1 else 3
    places = 2 if width <= 0 else min(most, max(0, -math.floor(math.log10(width))))
    return f"{value:.{places}f}"


def _ends(ratio: Ratio) -> tuple[float, float, float]:
    return ratio.value, ratio.low, ratio.high
