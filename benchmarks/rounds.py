"""Ways to do the same, timed in turn, round by round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bootpig_rt.benchmarks.result import Row
from bootpig_rt.benchmarks.settings import Progress, no_progress


@dataclass(frozen=True)
class Way:
    """Something that is timed.

    Attributes:
        name: Of its row.
        label: Of its row.
        run: Does it once, and returns when it is done.
        pictures: How many it draws: times are per picture; a share of one is allowed.
        group: Of its row.
        values: Of its row.
        notes: Of its row.
    """

    name: str
    label: str
    run: Callable[[], object]
    pictures: float = 1
    group: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def time_ways(
    ways: Sequence[Way],
    rounds: int,
    *,
    warmups: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Row, ...]:
    """Time all ways, each once a round, in a new order each round.

    A slow moment of the machine hits all ways alike, and no way always follows the same one.

    Args:
        ways: What is timed; names are unique.
        rounds: How often, 1 and up.
        warmups: Rounds that are dropped.
        seed: Of the orders.
        progress: Told after each round.

    Returns:
        One row a way, in the order of `ways`, without ratios.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    if len(times) != len(ways):
        raise ValueError("two ways have the same name")
    order = np.random.default_rng(seed)
    for index in range(warmups + rounds):
        for place in order.permutation(len(ways)):
            way = ways[place]
            gc.collect()
            start = time.perf_counter()
            way.run()
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            if index >= warmups:
                times[way.name].append(elapsed_ms / way.pictures)
        progress("rounds", index + 1, warmups + rounds)
    return tuple(
        Row(
            name=way.name,
            label=way.label,
            group=way.group,
            samples_ms=tuple(times[way.name]),
            values=way.values,
            notes=way.notes,
        )
        for way in ways
    )
