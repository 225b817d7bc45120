"""Ratios and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.benchmarks.stats import Ratio, in_digits, median_ratio, ratio_of_medians, spread

TIMES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=20)


@given(times=TIMES)
def test_a_way_is_as_fast_as_itself(times: list[float]) -> None:
    ratio = median_ratio("b", times, times)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


@given(times=TIMES, factor=st.floats(0.1, 10))
def test_a_ratio_does_not_depend_on_the_unit(times: list[float], factor: float) -> None:
    other = [time * 2 for time in reversed(times)]
    ratio = median_ratio("b", times, other)
    scaled = median_ratio("b", [factor * t for t in times], [factor * t for t in other])
    assert scaled.value == pytest.approx(ratio.value)
    assert scaled.low == pytest.approx(ratio.low)


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        slow, fast = 30 * rng.lognormal(0, 0.1, 30), 10 * rng.lognormal(0, 0.1, 30)
        ratio = median_ratio("b", slow, fast, seed=trial)
        held += ratio.low <= 3 <= ratio.high
    assert held >= 0.88 * 200


def test_ways_that_did_not_run_in_turn_are_compared_by_their_medians() -> None:
    ratio = ratio_of_medians("b", [30.0, 31.0, 29.0], [10.0, 10.0, 10.0, 11.0])
    assert ratio.value == pytest.approx(3.0)
    assert ratio.low <= 3 <= ratio.high
    assert ratio_of_medians("b", [3.0], [1.0]).low == 3
    for times in ([], [0.0]):
        with pytest.raises(ValueError, match=r"no times|zero or less"):
            ratio_of_medians("b", [1.0], times)


def test_an_interval_of_medians_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        slow, fast = 30 * rng.lognormal(0, 0.1, 30), 10 * rng.lognormal(0, 0.1, 20)
        ratio = ratio_of_medians("b", slow, fast, seed=trial)
        held += ratio.low <= 3 <= ratio.high
    assert held >= 0.88 * 200


def test_what_slows_a_whole_round_does_not_widen_the_interval() -> None:
    moment = np.array([1.0, 4.0, 1.0, 2.0, 1.0, 8.0, 1.0])
    ratio = median_ratio("b", 30 * moment, 10 * moment)
    assert (ratio.low, ratio.high) == pytest.approx((3, 3))


def test_rounds_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError, match="same number"):
        median_ratio("b", [1, 2], [1])


def test_a_time_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="clock"):
        median_ratio("b", [1.0], [0.0])


def test_equal_times_have_no_spread() -> None:
    assert spread([3, 3, 3]) == 0


def test_the_ratio_is_that_of_pairs_not_of_all_times() -> None:
    # Of the medians it would be 20 / 10; of the pairs it is the median of 1, 4 and 1.
    assert median_ratio("b", [10, 40, 20], [10, 10, 20]).value == 1


def test_the_error_of_a_ratio_is_that_of_its_interval() -> None:
    rng = np.random.default_rng(0)
    ratio = median_ratio("b", 10 * rng.lognormal(0, 0.05, 400), np.full(400, 10.0))
    # Of a median of 400 normal numbers: sqrt(pi / 2) times that of their mean.
    assert ratio.log_error == pytest.approx(1.2533 * 0.05 / 20, rel=0.3)


def test_a_ratio_whose_interval_reaches_zero_has_no_error() -> None:
    assert Ratio("b", 1, 0, 2).log_error == float("inf")


def test_the_spread_is_half_the_middle_half_over_the_median() -> None:
    assert spread([8, 9, 10, 11, 12]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (3.187, 2.94, 3.41, "3.2"),
        (3.187, 2.1, 4.4, "3"),
        (3.187, 3.181, 3.192, "3.19"),
        (1.0, 1.0, 1.0, "1.00"),
        (24.31, 12.0, 39.0, "24"),
        (0.0399, 0.0364, 0.0435, "0.040"),
        (0.079, 0.072, 0.086, "0.08"),
        (0.1082, 0.1053, 0.1111, "0.11"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_supports(
    value: float, low: float, high: float, shown: str
) -> None:
    assert in_digits(value, low, high) == shown


def test_a_ratio_is_never_shown_without_its_interval() -> None:
    assert str(Ratio("b", 3.187, 2.94, 3.41)) == "3.2x (2.9 to 3.4)"
