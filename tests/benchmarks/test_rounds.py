"""Ways in turn."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import pytest

from bootpig_rt.benchmarks import rounds
from bootpig_rt.benchmarks.intervals import Ratio
from bootpig_rt.benchmarks.result import with_ratios
from bootpig_rt.benchmarks.rounds import Way, choose, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.errors import ParameterError


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


def test_every_run_lies_between_two_of_the_baseline() -> None:
    calls: list[str] = []
    ways = [Way(name, name, partial(calls.append, name)) for name in "Babc"]
    rows = time_ways(ways, 3, baseline="B", warmups=1)
    assert len(calls) == 4 * 7
    for start in range(0, len(calls), 7):
        assert calls[start : start + 7 : 2] == ["B"] * 4
        assert sorted(calls[start + 1 : start + 7 : 2]) == ["a", "b", "c"]
    base, *others = rows
    assert len(base.samples_ms) == 3 * 4
    assert all(len(row.samples_ms) == len(row.baseline_ms) == 3 for row in others)
    assert {row.ratio_to for row in rows} == {"B"}


def test_a_baseline_alone_is_timed_and_an_unknown_one_is_refused() -> None:
    (row,) = time_ways([Way("a", "a", int)], 3, baseline="a")
    assert len(row.samples_ms) == 3
    assert row.ratio is not None
    assert time_ways([], 3, baseline="a") == ()
    with pytest.raises(ValueError, match="no way has the name 'b'"):
        time_ways([Way("a", "a", int)], 1, baseline="b")


class UnsteadyMachine:
    """A machine that is now up to three times slower than at its best, in waves of 3 s."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def perf_counter(self) -> float:
        return self.now_ms / 1e3

    def work(self, cost_ms: float) -> None:
        self.now_ms += cost_ms * (2 + math.sin(self.now_ms / 3000 * 2 * math.pi))


def test_runs_beside_each_other_cancel_spells_that_are_shorter_than_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(baseline: str | None) -> Ratio:
        machine = UnsteadyMachine()
        monkeypatch.setattr(rounds, "time", machine)
        ways = [
            Way("base", "base", partial(machine.work, 20)),
            Way("half", "half", partial(machine.work, 10)),
            *(Way(f"other {n}", "other", partial(machine.work, 63)) for n in range(10)),
        ]
        base, half, *_ = time_ways(ways, 20, baseline=baseline)
        if baseline is None:
            half = with_ratios([base, half], to="base")[1]
        assert half.ratio is not None
        return half.ratio

    beside, by_round = timed("base"), timed(None)
    assert beside.value == pytest.approx(2, rel=0.01)
    assert beside.high / beside.low < 1.02
    assert by_round.high / by_round.low > 1.1


def test_what_prepares_a_run_is_not_timed() -> None:
    prepared: list[int] = []

    def prepare() -> None:
        prepared.append(1)
        time.sleep(0.02)

    (row,) = time_ways([Way("a", "a", int, prepare=prepare)], 3)
    assert len(prepared) == 4
    assert max(row.samples_ms) < 19


def wanted(*only: str) -> Settings:
    return Settings(pair=Path(), only=only)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), ["base", "a", "ab", "c"]),
        (("a",), ["base", "a", "ab"]),
        (("base",), ["base"]),
        (("c", "base"), ["base", "c"]),
        (("x",), []),
    ],
)
def test_the_baseline_stays_beside_the_rows_that_are_asked_for(
    only: tuple[str, ...], expected: list[str]
) -> None:
    ways = [Way(name, name, int) for name in ("base", "a", "ab", "c")]
    assert [way.name for way in choose(ways, wanted(*only))] == expected


def test_an_only_that_matches_nothing_names_what_there_is() -> None:
    wanted("ours").check_only(["ours_warm"])
    wanted().check_only(["ours_warm"])
    with pytest.raises(ParameterError, match="--only owrs matches no row, .*: ours_warm, ours_c"):
        wanted("owrs").check_only(["ours_warm", "ours_cold"])
