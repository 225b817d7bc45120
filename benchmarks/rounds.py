"""Ways to do the same, timed in turn, round by round, each beside runs of a baseline."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from bootpig_rt.benchmarks.intervals import Ratio, median_ratio
from bootpig_rt.benchmarks.result import Row
from bootpig_rt.benchmarks.settings import Progress, Settings, no_progress


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
        prepare: Called before each run, ahead of the clock.
    """

    name: str
    label: str
    run: Callable[[], object]
    pictures: float = 1
    group: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], object] | None = None


def choose(ways: Sequence[Way], settings: Settings) -> list[Way]:
    """The ways that `--only` asks for.

    The first one is the baseline of the others, and stays where one of them does.
    """
    wanted = [way for way in ways if settings.is_wanted(way.name)]
    if not wanted or wanted[0] is ways[0]:
        return wanted
    return [ways[0], *wanted]


def time_ways(
    ways: Sequence[Way],
    rounds: int,
    *,
    baseline: str | None = None,
    warmups: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Row, ...]:
    """Time all ways, each once a round, in a new order each round.

    No way always follows the same one. With a `baseline` each run of another way lies between two
    runs of it: B a B c B b B. A slow spell of the machine is often shorter than a round, but seldom
    shorter than such a triple, so it hits both sides of a ratio.

    Args:
        ways: What is timed; names are unique.
        rounds: How often, 1 and up.
        baseline: Name of the way that the others are compared with.
        warmups: Rounds that are dropped.
        seed: Of the orders.
        progress: Told after each round.

    Returns:
        One row a way, in the order of `ways`. With a `baseline` they hold `baseline_ms`, the
        geometric mean of the runs before and after each of their own, and the ratio: the median of
        `baseline_ms` over `samples_ms`. The baseline itself has a sample for each of its runs.

    Raises:
        ValueError: Two ways of one name, or no way of the baseline's name.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    if len(times) != len(ways):
        raise ValueError("two ways have the same name")
    if baseline is not None and ways and baseline not in times:
        raise ValueError(f"no way has the name {baseline!r} of the baseline")
    base = next((way for way in ways if way.name == baseline), None)
    others = [way for way in ways if way is not base]
    beside: dict[str, list[float]] = {way.name: [] for way in others}
    order = np.random.default_rng(seed)
    with _no_collections() as collect:
        for index in range(warmups + rounds) if ways else ():
            is_kept = index >= warmups
            collect()
            before = None if base is None else _time(base, times, is_kept)
            for place in order.permutation(len(others)):
                way = others[place]
                _time(way, times, is_kept)
                if base is not None and before is not None:
                    after = _time(base, times, is_kept)
                    if is_kept:
                        beside[way.name].append(math.sqrt(before * after))
                    before = after
            progress("rounds", index + 1, warmups + rounds)
    rows = []
    for way in ways:
        row = Row(
            name=way.name,
            label=way.label,
            group=way.group,
            samples_ms=tuple(times[way.name]),
            values=way.values,
            notes=way.notes,
        )
        if way is base:
            row = replace(row, ratio_to=baseline, ratio=Ratio(1.0, 1.0, 1.0))
        elif base is not None:
            pairs = tuple(beside[way.name])
            row = replace(
                row,
                baseline_ms=pairs,
                ratio_to=baseline,
                ratio=median_ratio(pairs, row.samples_ms),
            )
        rows.append(row)
    return tuple(rows)


@contextmanager
def _no_collections() -> Iterator[Callable[[], object]]:
    """No garbage is collected but where the function is called: it would fall into a timed run.

    What is there already is left out, since to go through all modules takes longer than many ways.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()
        gc.unfreeze()


def _time(way: Way, times: dict[str, list[float]], is_kept: bool) -> float:
    """One run, in milliseconds per picture."""
    if way.prepare is not None:
        way.prepare()
    start = time.perf_counter()
    way.run()
    elapsed_ms = 1e3 * (time.perf_counter() - start) / way.pictures
    if is_kept:
        times[way.name].append(elapsed_ms)
    return elapsed_ms
