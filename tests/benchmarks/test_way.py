"""Ways: made, compared, and timed in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks import way as module
from bootpig_rt.benchmarks.result import Row, ratio_of_rows
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Unavailable, Way, time_ways
from bootpig_rt.errors import ParameterError


def timed(
    ways: Sequence[tuple[str, Callable[[], object]]],
    rounds: int,
    *,
    baseline: str | None = None,
    warmups: int = 1,
    journal: Journal | None = None,
    settings: Settings | None = None,
) -> list[Row]:
    pairs = [(Way(name, name, lambda: Ready(int)), Ready(run)) for name, run in ways]
    found = time_ways(
        pairs, rounds, baseline=baseline, warmups=warmups, journal=journal, settings=settings
    )
    return list(found.values())


def recording(calls: list[str], names: str) -> list[tuple[str, Callable[[], object]]]:
    return [(name, partial(calls.append, name)) for name in names]


def test_every_way_runs_once_a_round_and_warm_ups_are_not_counted() -> None:
    calls: list[str] = []
    rows = timed(recording(calls, "abc"), 4, warmups=2)
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert all(len(row.samples_ms) == 4 for row in rows)
    for start in range(0, len(calls), 3):
        assert sorted(calls[start : start + 3]) == ["a", "b", "c"]
    assert len(calls) == 3 * 6


def test_the_order_changes_from_round_to_round() -> None:
    calls: list[str] = []
    timed(recording(calls, "abcd"), 8, warmups=0)
    orders = {"".join(calls[start : start + 4]) for start in range(0, len(calls), 4)}
    assert len(orders) > 2


def test_times_are_per_picture() -> None:
    nap = partial(time.sleep, 0.02)
    ways = [
        (Way("one", "one", lambda: Ready(nap)), Ready(nap)),
        (Way("four", "four", lambda: Ready(nap), pictures=4), Ready(nap)),
    ]
    one, four = time_ways(ways, 3).values()
    assert min(one.samples_ms) >= 19
    assert 19 / 4 <= min(four.samples_ms) < 19


def test_a_way_may_tell_its_own_time() -> None:
    (row,) = timed([("a", lambda: 7.5)], 3)
    assert row.samples_ms == (7.5, 7.5, 7.5)


def test_two_ways_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        timed([("a", int), ("a", int)], 1)


def test_progress_is_told_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    settings = Settings(Path(), progress=lambda _, done, total: seen.append((done, total)))
    timed([("a", int)], 3, settings=settings)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_every_run_lies_between_two_of_the_baseline() -> None:
    calls: list[str] = []
    rows = timed(recording(calls, "Babc"), 3, baseline="B")
    assert len(calls) == 4 * 7
    for start in range(0, len(calls), 7):
        assert calls[start : start + 7 : 2] == ["B"] * 4
        assert sorted(calls[start + 1 : start + 7 : 2]) == ["a", "b", "c"]
    base, *others = rows
    assert len(base.samples_ms) == 3
    assert all(len(row.samples_ms) == len(row.baseline_ms) == 3 for row in others)
    assert {row.ratio.to for row in rows if row.ratio is not None} == {"B"}


def test_a_baseline_alone_is_timed_and_an_unknown_one_is_refused() -> None:
    (row,) = timed([("a", int)], 3, baseline="a")
    assert len(row.samples_ms) == 3
    assert row.ratio is not None
    assert timed([], 3, baseline="a") == []
    with pytest.raises(ValueError, match="no way has the name 'b'"):
        timed([("a", int)], 1, baseline="b")


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
    def ratio(baseline: str | None) -> Ratio:
        machine = UnsteadyMachine()
        monkeypatch.setattr(module, "time", machine)
        ways: list[tuple[str, Callable[[], object]]] = [
            ("base", partial(machine.work, 20)),
            ("half", partial(machine.work, 10)),
            *((f"other {n}", partial(machine.work, 63)) for n in range(10)),
        ]
        base, half, *_ = timed(ways, 20, baseline=baseline)
        found = half.ratio or ratio_of_rows(half, base)
        assert found is not None
        return found

    beside, by_round = ratio("base"), ratio(None)
    assert beside.value == pytest.approx(2, rel=0.01)
    assert beside.high / beside.low < 1.02
    assert by_round.high / by_round.low > 1.1


def test_what_prepares_a_run_is_not_timed() -> None:
    prepared: list[int] = []

    def prepare() -> None:
        prepared.append(1)
        time.sleep(0.02)

    ready = Ready(int, prepare=prepare)
    row = time_ways([(Way("a", "a", lambda: ready), ready)], 3)["a"]
    assert len(prepared) == 4
    assert max(row.samples_ms) < 19


def bench(*only: str, journal: Journal | None = None) -> Bench:
    return Bench(Settings(Path(), only=only, rounds=2), journal)


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
    ways = [Way.of(name, name, int) for name in ("base", "a", "ab", "c")]
    assert [row.name for row in bench(*only).rows("t", ways, baseline="base")] == expected


def test_an_only_that_matches_nothing_names_what_there_is() -> None:
    def check(only: str) -> None:
        Settings(Path(), only=(only,)).check_only(["ours_warm", "ours_cold"])

    check("ours")
    with pytest.raises(ParameterError, match="--only owrs matches no row, .*: ours_warm, ours_c"):
        check("owrs")


def test_a_way_that_differs_gets_no_time_and_its_difference_stands_beside_the_limit() -> None:
    calls: list[str] = []

    def make() -> Ready:
        return Ready(partial(calls.append, "x"), difference=lambda: 0.25, limit=0.1)

    made = bench()
    (row,) = made.rows("t", [Way("ours", "ours", make)])
    assert row.status == "wrong: differs by 0.25, expected at most 0.1"
    assert (row.samples_ms, calls) == ((), [])
    (check,) = made.checks
    assert (check.value, check.limit, check.is_ok) == (0.25, 0.1, False)


def test_a_difference_that_is_no_number_is_wrong() -> None:
    made = bench()
    way = Way("a", "a", lambda: Ready(int, difference=lambda: math.nan, limit=1.0))
    assert made.rows("t", [way])[0].status.startswith("wrong")


def test_a_way_that_cannot_run_says_why_and_the_others_go_on() -> None:
    def missing() -> Ready:
        raise Unavailable("the package fa3 is not installed")

    def broken() -> Ready:
        raise RuntimeError("no compiler\nand more")

    ways = [Way("a", "a", missing), Way("b", "b", broken), Way.of("c", "c", int)]
    rows = bench().rows("t", ways, baseline="c")
    assert rows[0].status == "not available: the package fa3 is not installed"
    assert rows[1].status == "failed: RuntimeError: no compiler"
    assert len(rows[2].samples_ms) == 2


def test_a_way_that_fails_when_it_runs_does_not_end_the_rounds_of_others() -> None:
    def fails() -> None:
        raise RuntimeError("256 px are not in the profile")

    rows = bench().rows("t", [Way.of("a", "a", fails), Way.of("b", "b", int)])
    assert rows[0].status == "failed: RuntimeError: 256 px are not in the profile"
    assert len(rows[1].samples_ms) == 2


def test_a_baseline_that_cannot_be_timed_is_an_error_with_its_reason() -> None:
    def missing() -> Ready:
        raise Unavailable("no GPU")

    with pytest.raises(ParameterError, match="baseline 'b' cannot be timed: not available: no GPU"):
        bench().rows("t", [Way.of("a", "a", int), Way("b", "b", missing)], baseline="b")


def test_a_way_is_made_and_compared_once_however_often_it_is_timed() -> None:
    made: list[str] = []

    def make() -> Ready:
        made.append("x")
        return Ready(int, difference=lambda: 0.0)

    twice = bench()
    for part in ("one", "two"):
        assert twice.rows(part, [Way("a", "a", make)])[0].samples_ms
    assert len(made) == len(twice.checks) == 1


def test_an_interrupted_run_goes_on_with_the_rounds_that_it_has(tmp_path: Path) -> None:
    path, calls = tmp_path / "rounds.jsonl", ["B"] * 0

    def stops() -> None:
        calls.append("x")
        if len(calls) == 4:  # a warm-up and two rounds are done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timed([("B", int), ("a", stops)], 5, baseline="B", journal=Journal(path))
    with path.open("a") as file:
        file.write('{"part": "", "ti')  # the power went here
    first = Journal(path).rounds("")
    assert len(first) == 2
    rows = timed([("B", int), ("a", stops)], 5, baseline="B", journal=Journal(path))
    assert len(calls) == 4 + 1 + 3  # warmed up again, and three rounds
    assert len(rows[1].samples_ms) == len(rows[1].baseline_ms) == 5
    assert rows[1].samples_ms[:2] == tuple(each["a"][0] for each in first)
    timed([("B", int), ("a", stops)], 5, baseline="B", journal=Journal(path))
    assert len(calls) == 8  # nothing is left to do


def test_rounds_of_other_ways_are_not_taken(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds.jsonl")
    timed([("a", int)], 3, journal=journal)
    (row,) = timed([("b", int)], 2, journal=journal)
    assert len(row.samples_ms) == 2


def test_a_changed_checkout_and_a_smoke_run_keep_no_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(Path(), work=tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab-dirty")
    assert Journal.of("baselines", settings).path is None
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab")
    path = Journal.of("baselines", settings).path
    assert path is not None
    assert path != Journal.of("baselines", Settings(Path(), work=tmp_path, rounds=30)).path
    assert Journal.of("baselines", Settings(Path(), work=tmp_path, is_smoke=True)).path is None
