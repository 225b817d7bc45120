"""Rates over subjects with bootstrap intervals: pictures of one subject go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np

RESAMPLES = 2000


Rate: TypeAlias = dict[str, float]
"""`value`, the mean over subjects of each subject's mean; `low` and `high`, percentiles 2.5 and
97.5 of the bootstrap over subjects; how many `subjects` and `pictures` there are."""


def rate(values: Sequence[float], subjects: Sequence[Hashable]) -> Rate | None:
    """A mean over subjects with its 95 % interval; None without pictures.

    `values` has one for each picture, for example 1 for a hit and 0 for a miss, `subjects` whose
    picture it is.
    """
    by_subject: dict[Hashable, list[float]] = defaultdict(list)
    for value, subject in zip(values, subjects, strict=True):
        by_subject[subject].append(float(value))
    if not by_subject:
        return None
    means = np.array([np.mean(found) for found in by_subject.values()])
    picks = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.percentile(means[picks].mean(axis=1), (2.5, 97.5))
    return {
        "value": float(means.mean()),
        "low": float(low),
        "high": float(high),
        "subjects": len(means),
        "pictures": len(values),
    }


def rounded(found: Rate | None) -> Rate | None:
    """A rate to four digits, for JSON."""
    return None if found is None else {name: round(number, 4) for name, number in found.items()}
