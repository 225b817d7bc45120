"""Where subjects go: evenly, the same for all who ask, and with little moving when replicas do."""

from __future__ import annotations

from collections import Counter

import pytest

from bootpig_rt.serving.rendezvous import Rendezvous, by_preference_and_load

SUBJECTS = [f"subject {number}" for number in range(2000)]


def test_whoever_asks_gets_the_same_order_whatever_order_replicas_came_in() -> None:
    names = ["a", "b", "c", "d"]
    for subject in SUBJECTS[:50]:
        order = Rendezvous(names).order(subject)
        assert sorted(order) == names
        assert Rendezvous(names[::-1]).order(subject) == order


@pytest.mark.parametrize("count", [2, 3, 16])
def test_replicas_get_equal_shares_of_the_subjects(count: int) -> None:
    rendezvous = Rendezvous([f"replica {number}" for number in range(count)])
    shares = Counter(rendezvous.order(subject)[0] for subject in SUBJECTS)
    mean = len(SUBJECTS) / count
    assert len(shares) == count
    # Four standard deviations of a fair draw.
    assert max(abs(share - mean) for share in shares.values()) < 4 * mean**0.5


def test_a_replica_that_leaves_moves_its_own_subjects_alone_and_each_to_its_next_choice() -> None:
    before, after = Rendezvous(["a", "b", "c"]), Rendezvous(["a", "c"])
    for subject in SUBJECTS[:300]:
        assert after.order(subject) == [name for name in before.order(subject) if name != "b"]


def test_a_replica_that_comes_takes_its_share_and_moves_nothing_else() -> None:
    before, after = Rendezvous(["a", "b", "c"]), Rendezvous(["a", "b", "c", "d"])
    moved = [
        (before.order(subject)[0], after.order(subject)[0])
        for subject in SUBJECTS
        if before.order(subject)[0] != after.order(subject)[0]
    ]
    assert {name for _, name in moved} == {"d"}
    assert 0.2 < len(moved) / len(SUBJECTS) < 0.3


def test_second_choices_of_one_replica_are_spread_over_all_others() -> None:
    rendezvous = Rendezvous(["a", "b", "c", "d"])
    orders = [rendezvous.order(subject) for subject in SUBJECTS]
    seconds = Counter(order[1] for order in orders if order[0] == "a")
    assert min(seconds.values()) > 0.2 * sum(seconds.values())


def test_a_fleet_without_replicas_has_no_order() -> None:
    assert Rendezvous(()).order("any") == []


def test_a_subject_stays_until_its_replica_has_more_than_it_draws_at_once() -> None:
    order = ["a", "b", "c"]
    assert by_preference_and_load(order, {"a": 7}, spill_over=8) == ["a", "b", "c"]
    assert by_preference_and_load(order, {"a": 8}, spill_over=8) == ["b", "c", "a"]
    assert by_preference_and_load(order, {"a": 8, "b": 9}, spill_over=8) == ["c", "a", "b"]


def test_when_all_are_busy_subjects_stay_where_their_tables_are() -> None:
    order = ["a", "b", "c"]
    loads = {"a": 40, "b": 36, "c": 38}
    assert by_preference_and_load(order, loads, spill_over=8) == ["a", "b", "c"]
    # And one that everybody asks for still spills, at a quarter over the mean.
    assert by_preference_and_load(order, loads | {"a": 60}, spill_over=8)[0] == "b"


def test_what_is_over_the_limit_comes_last_and_the_least_busy_of_it_first() -> None:
    loads = {"a": 30, "b": 22, "c": 0}
    assert by_preference_and_load(["a", "b", "c"], loads, spill_over=4) == ["c", "b", "a"]
