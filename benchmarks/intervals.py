"""Medians and ratios of times, with bootstrap intervals. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How much faster one way is than another, with its 95 % interval.

    Attributes:
        value: Time of the baseline over the time of the way: above 1 is faster.
        low: 2.5th percentile of the bootstrap over rounds.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float


def median_ratio(
    baseline_ms: Sequence[float] | Floats, way_ms: Sequence[float] | Floats, *, seed: int = 0
) -> Ratio:
    """Ratio of the medians of two ways that ran in the same rounds.

    Rounds are resampled as pairs: what slowed the machine in a round slowed both, and cancels.

    Args:
        baseline_ms: Times of the baseline, one a round, [K].
        way_ms: Times of the way in the same rounds, [K].
        seed: Of the bootstrap.

    Raises:
        ValueError: No rounds, other numbers of rounds, or a time that is not above zero.
    """
    base, way = np.asarray(baseline_ms, dtype=float), np.asarray(way_ms, dtype=float)
    if base.shape != way.shape or base.ndim != 1 or not len(base):
        raise ValueError(
            f"rounds of shape {base.shape} and {way.shape}, expected the same number for both"
        )
    if min(base.min(), way.min()) <= 0:
        raise ValueError("a time is zero or less; the clock is too coarse for this way")
    picks = np.random.default_rng(seed).integers(len(base), size=(RESAMPLES, len(base)))
    ratios = np.median(base[picks], axis=1) / np.median(way[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Ratio(float(np.median(base) / np.median(way)), float(low), float(high))


def spread(times_ms: Sequence[float] | Floats) -> float:
    """Half the range from 25th to 75th percentile, over the median: the noise of a way."""
    low, middle, high = np.percentile(np.asarray(times_ms, dtype=float), (25, 50, 75))
    return float((high - low) / 2 / middle)
