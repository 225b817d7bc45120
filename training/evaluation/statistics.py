"""Rates over subjects with bootstrap intervals: pictures of one subject go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """A mean over subjects with its 95 % interval.

    Attributes:
        value: Mean over subjects of each subject's mean.
        low: 2.5th percentile of the bootstrap over subjects.
        high: 97.5th percentile.
        subjects: How many subjects.
        pictures: How many pictures.
    """

    value: float
    low: float
    high: float
    subjects: int
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, rounded to four digits."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        """Value and interval, as tables show them."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rate(values: Sequence[float], subjects: Sequence[Hashable], *, seed: int = 0) -> Rate | None:
    """Mean and bootstrap interval by subject.

    Args:
        values: One for each picture, for example 1 for a hit and 0 for a miss.
        subjects: Whose picture it is.
        seed: Of the bootstrap.

    Returns:
        The rate, or None without pictures.
    """
    by_subject: dict[Hashable, list[float]] = defaultdict(list)
    for value, subject in zip(values, subjects, strict=True):
        by_subject[subject].append(float(value))
    if not by_subject:
        return None
    means = np.array([np.mean(found) for found in by_subject.values()])
    picks = np.random.default_rng(seed).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.percentile(means[picks].mean(axis=1), (2.5, 97.5))
    return Rate(float(means.mean()), float(low), float(high), len(means), len(values))
