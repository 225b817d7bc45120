"""What a picture will cost: time and memory of a configuration.

Time and memory are sums of terms with a meaning, each a count times a price. The prices are fitted
to measurements by least squares on relative errors, with none below zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.benchmarks.intervals import RESAMPLES
from bootpig_rt.errors import ParameterError

TERMS = (
    "call", "step", "row", "own_pair", "reference_pair", "reference", "picture", "image", "entry",
)  # fmt: skip
"""Of the time, in ms."""
MEMORY_TERMS = ("process", "row", "attention", "table", "pass", "merge")
"""Of the memory, in bytes."""

Counts: TypeAlias = npt.NDArray[np.float64]
ROWS, READERS = 3, 2
"""Rows of a picture with guidance, and those of them that read its references."""
PASS_ROWS = 16
"""(entry, reference) pairs that go through the Reference U-Net at once, `TableOptions`."""


@dataclass(frozen=True)
class Configuration:
    """What is drawn.

    References are always encoded at the pair's own size: what they cost does not grow with that of
    the picture, but where each of its tokens is compared with each of theirs.

    Attributes:
        steps: T.
        batch: B, pictures at once.
        references: R, of each subject.
        size_px: Side of a picture.
        entries: E, of the reference table: 1 for the schedules `clean` and `anchor`, T for `exact`.
        is_new: The subject was never seen: its pictures are encoded and read as well.
    """

    steps: int = 25
    batch: int = 1
    references: int = 1
    size_px: int = 64
    entries: int = 1
    is_new: bool = False

    @property
    def counts(self) -> Counts:
        """How often each of `TERMS` is paid, with an area of 64 x 64 pixels as 1.

        - call: once;
        - step: launches;
        - row: area of all rows in all steps;
        - own_pair: pairs of a query and a key of the same picture, which is attended to once
          without a reference and again beside each one;
        - reference_pair: pairs of a query and a key of a reference;
        - reference: references that rows read in all steps, whatever the size of the picture;
        - picture: area that the decoder makes;
        - image: references of a new subject, encoded;
        - entry: references of a new subject in each entry of its table.
        """
        rows, own, pairs, read = self._step
        new = self.references if self.is_new else 0
        each_step = (1.0, rows, own, pairs, read)
        return np.array(
            [1.0, *(self.steps * count for count in each_step), self.batch * self._area,
             new, new * self.entries]
        )  # fmt: skip

    @property
    def memory_counts(self) -> Counts:
        """How often each of `MEMORY_TERMS` is paid.

        - process: once;
        - row: area of all rows of a step;
        - attention: pairs of a query and a key of the same picture in a step;
        - table: references in each entry of the table;
        - pass: those of them that are read at once;
        - merge: the graph that combines several references, where there are several.
        """
        rows, own, *_ = self._step
        table = self.entries * self.references
        return np.array(
            [1.0, rows, own, table, min(PASS_ROWS, table), 1.0 if self.references > 1 else 0.0]
        )

    @property
    def _step(self) -> tuple[float, float, float, float]:
        area, read = self._area, self.batch * READERS * self.references
        own = (self.batch + read) * area**2
        return self.batch * ROWS * area, own, read * area, float(read)

    @property
    def _area(self) -> float:
        return (self.size_px / 64) ** 2


def predict(prices: Sequence[float], counts: Counts) -> float:
    """What a configuration costs: ms of a whole call, or bytes of a process at most.

    Args:
        prices: Of the terms.
        counts: Of the same terms, `Configuration.counts` or `Configuration.memory_counts`.
    """
    return float(counts @ np.array(prices))


def fit(measured: Sequence[tuple[Counts, float]]) -> tuple[float, ...]:
    """Find the prices that explain measurements.

    Args:
        measured: Counts of terms and what was measured, at least as many as there are terms.

    Returns:
        A price for each term, none below zero.

    Raises:
        ParameterError: Too few measurements, or one of zero.
    """
    terms = len(measured[0][0]) if measured else 1
    if len(measured) < terms:
        raise ParameterError(
            f"{len(measured)} measurements for {terms} prices, expected at least as many"
        )
    found = np.array([value for _, value in measured])
    if found.min() <= 0:
        raise ParameterError("a measurement is zero or less")
    # Divided by its value, each measurement is to come out as 1: errors are relative.
    matrix = np.array([counts for counts, _ in measured]) / found[:, None]
    return tuple(_non_negative(matrix, np.ones(len(found))))


def _non_negative(
    matrix: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Least squares with no solution below zero, over all sets of terms: there are few."""
    count = matrix.shape[1]
    best, least = np.zeros(count), math.inf
    for chosen in range(1, 1 << count):
        columns = [index for index in range(count) if chosen >> index & 1]
        found = np.linalg.lstsq(matrix[:, columns], wanted, rcond=None)[0]
        error = float(np.sum((matrix[:, columns] @ found - wanted) ** 2))
        if found.min() >= 0 and error < least - 1e-12:
            best, least = np.zeros(count), error
            best[columns] = found
    return best


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of log y over log x: 1 is proportional, 2 is quadratic."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def exponent_interval(
    xs: Sequence[float], samples: Sequence[Sequence[float]], *, seed: int = 0
) -> tuple[float, float, float]:
    """Exponent of the medians, and its 95 % interval from a bootstrap over rounds.

    Args:
        xs: K, what is varied.
        samples: K x rounds. All of a round are drawn together: a slow round slowed all of them.
        seed: Of the bootstrap.

    Returns:
        The exponent, the 2.5th and the 97.5th percentile.
    """
    found = np.array(samples)
    picks = np.random.default_rng(seed).integers(found.shape[1], size=(RESAMPLES, found.shape[1]))
    slopes = [exponent(xs, np.median(found[:, pick], axis=1).tolist()) for pick in picks]
    low, high = np.percentile(slopes, (2.5, 97.5))
    return exponent(xs, np.median(found, axis=1).tolist()), float(low), float(high)


def exponent_range(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Exponent of values that were measured once, and its range when each one is left out."""
    without = [
        exponent([*xs[:n], *xs[n + 1 :]], [*ys[:n], *ys[n + 1 :]]) for n in range(len(xs))
    ]  # fmt: skip
    return exponent(xs, ys), min(without), max(without)
