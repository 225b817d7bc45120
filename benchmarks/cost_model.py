"""What a picture will cost: time and memory of a configuration, and machines for a load.

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

from bootpig_rt.errors import ParameterError

TERMS = ("call", "step", "row", "attention", "picture")
"""Of the time, in ms."""
MEMORY_TERMS = ("process", "row", "attention", "table")
"""Of the memory, in bytes."""

Counts: TypeAlias = npt.NDArray[np.float64]
ROWS = 3


@dataclass(frozen=True)
class Configuration:
    """What is drawn.

    Attributes:
        steps: T.
        batch: Pictures at once.
        references: Of each subject; 0 for none.
        size_px: Side of a picture.
    """

    steps: int = 25
    batch: int = 1
    references: int = 1
    size_px: int = 64

    @property
    def counts(self) -> Counts:
        """How often each of `TERMS` is paid.

        - call: once;
        - step: launches;
        - row: pixels of all rows in all steps, in units of 64 x 64;
        - attention: pairs of a query and a key in all rows and steps, in the same unit squared;
        - picture: pixels that the decoder makes, in units of 64 x 64.
        """
        _, rows, pairs, _ = self.memory_counts
        return np.array(
            [1.0, self.steps, self.steps * rows, self.steps * pairs, self.batch * self._area]
        )

    @property
    def memory_counts(self) -> Counts:
        """How often each of `MEMORY_TERMS` is paid.

        - process: once;
        - row: pixels of all rows of a step, in units of 64 x 64;
        - attention: pairs of a query and a key in all rows of a step, in the same unit squared;
        - table: pixels of all entries of the reference table, in units of 64 x 64.
        """
        rows, readers = self.batch * ROWS, self.batch * (ROWS - 1)
        pairs = (rows + readers * self.references) * self._area**2
        return np.array([1.0, rows * self._area, pairs, self.steps * self.references * self._area])

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


def machines_for(
    pictures_per_minute: float,
    ms_a_picture: float,
    *,
    utilisation: float = 0.7,
) -> int:
    """Machines that draw a load, each drawing one call after the other.

    Args:
        pictures_per_minute: On average.
        ms_a_picture: Of one machine, in the batch that it will use.
        utilisation: Share of the time that a machine may be busy; the rest keeps queues short.

    Raises:
        ParameterError: A number is out of range.
    """
    if pictures_per_minute < 0 or ms_a_picture <= 0 or not 0 < utilisation <= 1:
        raise ParameterError(
            f"a load of {pictures_per_minute} a minute at {ms_a_picture} ms and utilisation "
            f"{utilisation}, expected 0 or more, above 0, and above 0 up to 1"
        )
    busy_minutes = pictures_per_minute * ms_a_picture / 60_000
    return math.ceil(busy_minutes / utilisation - 1e-9)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of log y over log x: 1 is proportional, 2 is quadratic."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])
