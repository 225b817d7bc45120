"""Ways in turn."""

from __future__ import annotations

import time
from functools import partial

import pytest

from bootpig_rt.benchmarks.result import with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways


def test_every_way_runs_once_a_round_and_warm_ups_are_not_counted() -> None:
    calls: list[str] = []
    ways = [Way(name, name, partial(calls.append, name)) for name in "abc"]
    rows = time_ways(ways, 4, warmups=2)
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert all(len(row.samples_ms) == 4 for row in rows)
    for start in range(0, len(calls), 3):
        assert sorted(calls[start : start + 3]) == ["a", "b", "c"]
    assert len(calls) == 3 * 6


def test_the_order_changes_from_round_to_round() -> None:
    calls: list[str] = []
    time_ways([Way(name, name, partial(calls.append, name)) for name in "abcd"], 8, warmups=0)
    orders = {"".join(calls[start : start + 4]) for start in range(0, len(calls), 4)}
    assert len(orders) > 2


def test_times_are_per_picture() -> None:
    ways = [
        Way("one", "one", partial(time.sleep, 0.02)),
        Way("four", "four", partial(time.sleep, 0.02), pictures=4),
    ]
    one, four = with_ratios(time_ways(ways, 3), to="one")
    assert min(one.samples_ms) >= 19
    assert min(four.samples_ms) >= 19 / 4
    assert one.ratio is not None
    assert one.ratio.value == 1
    assert four.ratio_to == "one"


def test_two_ways_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        time_ways([Way("a", "a", int), Way("a", "b", int)], 1)


def test_progress_is_told_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    time_ways([Way("a", "a", int)], 3, progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
