"""What a picture will cost: time and memory of a configuration, and machines for a load.

The time is a sum of terms with a meaning, each a count times a price. The prices are fitted to
measurements by least squares on relative errors, with none below zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ParameterError

TERMS = ("call", "step", "row", "attention", "picture")
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
    def counts(self) -> npt.NDArray[np.float64]:
        """How often each of `TERMS` is paid.

        - call: once;
        - step: launches;
        - row: pixels of all rows in all steps, in units of 64 x 64;
        - attention: pairs of a query and a key in all rows and steps, in the same unit squared;
        - picture: pixels that the decoder makes, in units of 64 x 64.
        """
        area = (self.size_px / 64) ** 2
        rows = self.steps * self.batch * ROWS
        readers = self.steps * self.batch * (ROWS - 1)
        pairs = (rows + readers * self.references) * area**2
        return np.array([1.0, self.steps, rows * area, pairs, self.batch * area])


@dataclass(frozen=True)
class CostModel:
    """Prices of `TERMS` in ms.

    Attributes:
        prices_ms: [5], none below zero.
    """

    prices_ms: tuple[float, ...]

    def predict_ms(self, configuration: Configuration) -> float:
        """Time of a whole call, for all pictures of its batch."""
        return float(configuration.counts @ np.array(self.prices_ms))


def fit(measured: Sequence[tuple[Configuration, float]]) -> CostModel:
    """Find the prices that explain measured times.

    Args:
        measured: Configurations and their times in ms, at least as many as there are terms.

    Raises:
        ParameterError: Too few measurements, or a time of zero.
    """
    if len(measured) < len(TERMS):
        raise ParameterError(
            f"{len(measured)} measurements for {len(TERMS)} prices, expected at least as many"
        )
    times = np.array([time for _, time in measured])
    if times.min() <= 0:
        raise ParameterError("a measured time is zero or less")
    # Divided by its time, each measurement is to come out as 1: errors are relative.
    matrix = np.array([configuration.counts for configuration, _ in measured]) / times[:, None]
    return CostModel(tuple(_non_negative(matrix, np.ones(len(times)))))


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
