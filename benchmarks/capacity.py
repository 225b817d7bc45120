"""What a load needs: predictions of a measured cost model, and machines for pictures a minute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bootpig_rt.benchmarks.cost_model import (
    MEMORY_TERMS,
    TERMS,
    Configuration,
    Counts,
    predict,
)
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.errors import ParameterError

_AGAIN = "measure with `bootpig-rt bench --suite scale --output FILE`"


@dataclass(frozen=True)
class Prices:
    """Prices of a cost model's terms, and how wrong they were.

    Attributes:
        of_terms: In ms, or in bytes.
        worst_error: Largest error of a prediction of a held-out setting, as a share.
    """

    of_terms: tuple[float, ...]
    worst_error: float

    def predict(self, counts: Counts) -> float:
        """Of `Configuration.counts` or `memory_counts`."""
        return predict(self.of_terms, counts)


@dataclass(frozen=True)
class CostModel:
    """What a run of the suite `scale` found.

    Attributes:
        pair: Name of the pair that was measured.
        time: In ms.
        memory: In bytes of a process; None where it was not measured.
    """

    pair: str
    time: Prices
    memory: Prices | None

    @classmethod
    def of(cls, results: Sequence[SuiteResult]) -> CostModel:
        """Read the prices from the rows of a suite.

        Raises:
            ParameterError: The results hold no suite `scale`, or one with other terms.
        """
        result = next((each for each in results if each.suite == "scale"), None)
        if result is None:
            got = ", ".join(each.suite for each in results) or "nothing"
            raise ParameterError(f"a plan needs results of suite scale, got {got}; {_AGAIN}")
        names = {row.name for row in result.rows}
        memory = None
        if {"memory prices", "memory worst"} <= names:
            memory = _prices(result, MEMORY_TERMS, "memory prices", "memory worst", "bytes")
        pair = str(result.settings.get("pair", "unknown"))
        return cls(pair, _prices(result, TERMS, "prices", "worst", "ms"), memory)


def _prices(
    result: SuiteResult, terms: Sequence[str], prices: str, worst: str, unit: str
) -> Prices:
    found = result.row(prices).values
    wanted = [f"{term}_{unit}" for term in terms]
    if list(found) != wanted:
        raise ParameterError(
            f"the cost model of these results has the prices {', '.join(found)}, expected "
            f"{', '.join(wanted)}; {_AGAIN}"
        )
    error = result.row(worst).values["worst_error_share"] or 0.0
    return Prices(tuple(found[name] or 0.0 for name in wanted), error)


@dataclass(frozen=True)
class Load:
    """What is asked of a fleet.

    Attributes:
        pictures_per_minute: On average.
        picture: Each call: steps, batch, references, size, entries.
        new_subjects: Share of the pictures whose subject was never seen, 0 to 1.
        utilisation: Share of the time that a machine may be busy; the rest keeps queues short.

    Raises:
        ParameterError: A number is out of range.
    """

    pictures_per_minute: float
    picture: Configuration
    new_subjects: float = 0.0
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        """Check every number."""
        if not 0 <= self.pictures_per_minute < math.inf:
            raise ParameterError(
                f"a load of {self.pictures_per_minute} pictures a minute, expected 0 or more"
            )
        if not 0 <= self.new_subjects <= 1:
            raise ParameterError(
                f"new subjects are {self.new_subjects} of the pictures, expected a share of 0 to 1"
            )
        if not 0 < self.utilisation <= 1:
            raise ParameterError(
                f"utilisation is {self.utilisation}, expected above 0 and up to 1; 0.7 is usual"
            )


@dataclass(frozen=True)
class Plan:
    """Machines for a load.

    Attributes:
        ms_a_picture: Of one machine, new subjects included.
        ms_a_call: Of a call whose subject is known.
        ms_a_new_subject: What a new subject adds to its first call.
        time_error: Largest error of the time's model on settings that were held out, as a share.
        machines: At the utilisation.
        machines_at_worst: The same if pictures take longer by `time_error`.
        bytes_a_process: At most; None where memory was not measured.
        memory_error: As `time_error`.
    """

    ms_a_picture: float
    ms_a_call: float
    ms_a_new_subject: float
    time_error: float
    machines: int
    machines_at_worst: int
    bytes_a_process: int | None
    memory_error: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def plan(model: CostModel, load: Load) -> Plan:
    """Predict what a picture costs, and count the machines that draw a load."""
    known = load.picture
    call = model.time.predict(known.counts)
    new = Configuration(**(asdict(known) | {"is_new": True}))
    subject = model.time.predict(new.counts) - call
    each = call / known.batch + load.new_subjects * subject
    error = model.time.worst_error
    memory = model.memory

    def machines(ms: float) -> int:
        return machines_for(load.pictures_per_minute, ms, utilisation=load.utilisation)

    return Plan(
        ms_a_picture=each,
        ms_a_call=call,
        ms_a_new_subject=subject,
        time_error=error,
        machines=machines(each),
        machines_at_worst=machines(each * (1 + error)),
        bytes_a_process=None if memory is None else round(memory.predict(known.memory_counts)),
        memory_error=None if memory is None else memory.worst_error,
    )


def machines_for(
    pictures_per_minute: float, ms_a_picture: float, *, utilisation: float = 0.7
) -> int:
    """Machines that draw a load, each drawing one call after the other.

    Args:
        pictures_per_minute: On average.
        ms_a_picture: Of one machine, in the batch that it will use.
        utilisation: Share of the time that a machine may be busy.
    """
    busy_minutes = pictures_per_minute * ms_a_picture / 60_000
    return math.ceil(busy_minutes / utilisation - 1e-9)
