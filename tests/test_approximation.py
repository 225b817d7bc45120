"""Approximations of steps: their names, and which steps compute the deep blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.approximation import Approximation
from bootpig_rt.errors import ParameterError
from bootpig_rt.request import Request

SHARES = st.tuples(st.integers(0, 9), st.integers(1, 10)).filter(lambda ends: ends[0] < ends[1])
APPROXIMATIONS = st.builds(
    lambda interval, ends: Approximation(interval, (ends[0] / 10, ends[1] / 10)),
    st.integers(2, 9),
    SHARES,
)
CHANGES = st.lists(st.booleans(), min_size=10, max_size=60).map(
    lambda rest: np.array([True, *rest])
)


@given(APPROXIMATIONS)
def test_a_name_is_read_as_it_is_written(approximation: Approximation) -> None:
    assert Approximation.parse(str(approximation)) == approximation


@pytest.mark.parametrize("text", ["none", "cache:1", "cache:1+window:0-0.5"])
def test_what_leaves_out_nothing_is_none(text: str) -> None:
    approximation = Approximation.parse(text)
    assert str(approximation) == "none"
    assert approximation.deep_steps(np.ones(5, np.bool_)).all()


@pytest.mark.parametrize(
    "text",
    ["", "cache", "cache:", "cache:0", "cache:-2", "cache:2.5", "cache:101", "cache:" + "9" * 5000,
     "cache:\uff12", "none+window:0-1", "cache:2+", "cache:2+window:0.5-0.5", "cache:2+window:1-0",
     "cache:2+window:nan-1", "cache:2+cache:3", " cache:2", "Cache:2", None, 2, True, [], b"none"],
)  # fmt: skip
def test_other_names_are_refused_with_what_would_do(text: Any) -> None:
    with pytest.raises(ParameterError, match=r"approximation is .*, expected none, cache:K"):
        Request(prompt="a", approximation=text)


def test_every_kth_step_is_deep_and_so_is_the_last() -> None:
    changes = np.zeros(9, np.bool_)
    changes[0] = True
    deep = Approximation.parse("cache:3").deep_steps(changes)
    assert np.flatnonzero(deep).tolist() == [0, 3, 6, 8]


def test_outside_of_the_window_all_steps_are_deep() -> None:
    changes = np.zeros(10, np.bool_)
    changes[0] = True
    deep = Approximation.parse("cache:4+window:0.2-0.7").deep_steps(changes)
    assert np.flatnonzero(~deep).tolist() == [3, 4, 5]


def test_a_window_without_a_step_is_refused() -> None:
    with pytest.raises(ParameterError, match="none of 2 steps lies in its window; widen it"):
        Approximation.parse("cache:2+window:0.6-0.9").deep_steps(np.ones(2, np.bool_))


@given(APPROXIMATIONS, CHANGES)
def test_no_row_reads_features_that_it_lacks_or_that_are_old(
    approximation: Approximation, changes: Any
) -> None:
    try:
        deep = approximation.deep_steps(changes)
    except ParameterError:
        return
    assert deep[-1]
    assert deep[changes].all()
    age = 0
    for is_deep in deep:
        age = 0 if is_deep else age + 1
        assert age < approximation.interval


@given(CHANGES, st.integers(2, 9))
def test_a_longer_interval_computes_no_more(changes: Any, interval: int) -> None:
    counts = [
        int(Approximation(each).deep_steps(changes).sum()) for each in (interval, 2 * interval)
    ]
    assert counts[1] <= counts[0]
