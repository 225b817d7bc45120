"""Ratios and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.benchmarks.intervals import median_ratio, spread

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=20)


@given(times=TIMES)
def test_a_way_is_as_fast_as_itself(times: list[float]) -> None:
    ratio = median_ratio(times, times)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


@given(times=TIMES, factor=st.floats(0.1, 10))
def test_a_ratio_does_not_depend_on_the_unit(times: list[float], factor: float) -> None:
    other = [time * 2 for time in reversed(times)]
    ratio = median_ratio(times, other)
    scaled = median_ratio([factor * t for t in times], [factor * t for t in other])
    assert scaled.value == pytest.approx(ratio.value)
    assert scaled.low == pytest.approx(ratio.low)


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        slow, fast = 30 * rng.lognormal(0, 0.1, 30), 10 * rng.lognormal(0, 0.1, 30)
        ratio = median_ratio(slow, fast, seed=trial)
        held += ratio.low <= 3 <= ratio.high
    assert held >= 0.88 * 200


def test_what_slows_a_whole_round_does_not_widen_the_interval() -> None:
    moment = np.array([1.0, 4.0, 1.0, 2.0, 1.0, 8.0, 1.0])
    ratio = median_ratio(30 * moment, 10 * moment)
    assert (ratio.low, ratio.high) == pytest.approx((3, 3))


def test_rounds_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError, match="same number"):
        median_ratio([1, 2], [1])


def test_a_time_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="clock"):
        median_ratio([1.0], [0.0])


def test_equal_times_have_no_spread() -> None:
    assert spread([3, 3, 3]) == 0
