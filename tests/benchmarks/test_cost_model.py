"""The cost model finds prices that it is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootpig_rt.benchmarks.cost_model import (
    MEMORY_TERMS,
    TERMS,
    Configuration,
    exponent,
    exponent_interval,
    exponent_range,
    fit,
    predict,
)
from bootpig_rt.errors import ParameterError

SETTINGS = [
    Configuration(steps, batch, references, size, entries, is_new)
    for steps in (4, 25)
    for batch in (1, 4)
    for references in (1, 3)
    for size in (32, 64, 128)
    for entries, is_new in ((1, False), (1, True), (steps, True))
]
PRICES = st.tuples(*[st.floats(0, 10)] * len(TERMS)).filter(lambda prices: max(prices) > 0.1)
MEMORY_PRICES = st.tuples(st.floats(1, 10), *[st.floats(0, 10)] * (len(MEMORY_TERMS) - 1))


@settings(max_examples=25, deadline=None)
@given(prices=PRICES)
def test_the_prices_behind_times_are_found(prices: tuple[float, ...]) -> None:
    measured = [(each.counts, predict(prices, each.counts)) for each in SETTINGS]
    found = fit(measured)
    for counts, time in measured:
        assert predict(found, counts) == pytest.approx(time, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(prices=MEMORY_PRICES)
def test_the_prices_behind_memory_are_found(prices: tuple[float, ...]) -> None:
    measured = [(each.memory_counts, predict(prices, each.memory_counts)) for each in SETTINGS]
    found = fit(measured)
    for counts, size in measured:
        assert predict(found, counts) == pytest.approx(size, rel=1e-3)


def test_noise_of_five_per_cent_leaves_predictions_within_ten() -> None:
    prices = (5.0, 0.4, 2.0, 0.3, 0.2, 0.1, 3.0, 4.0, 1.5)
    rng = np.random.default_rng(0)
    found = fit([(c.counts, predict(prices, c.counts) * rng.normal(1, 0.05)) for c in SETTINGS])
    other = Configuration(12, 2, 2, 96).counts
    assert predict(found, other) == pytest.approx(predict(prices, other), rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    prices=PRICES,
    memory_prices=MEMORY_PRICES,
    field=st.sampled_from(["steps", "batch", "references", "size_px", "entries"]),
)
def test_more_of_anything_never_costs_less(
    prices: tuple[float, ...], memory_prices: tuple[float, ...], field: str
) -> None:
    small = Configuration(is_new=True)
    large = replace(small, **{field: getattr(small, field) * 2})
    assert predict(prices, large.counts) >= predict(prices, small.counts)
    assert predict(memory_prices, large.memory_counts) >= predict(
        memory_prices, small.memory_counts
    )


def test_no_price_is_below_zero() -> None:
    rng = np.random.default_rng(1)
    assert min(fit([(each.counts, rng.uniform(1, 2)) for each in SETTINGS])) >= 0


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(ParameterError, match="expected at least as many"):
        fit([(Configuration().counts, 1.0)])


def test_a_reference_costs_the_same_whatever_the_size_of_the_picture_but_for_its_pairs() -> None:
    small, large = Configuration(size_px=64), Configuration(size_px=128)
    grown = dict(zip(TERMS, (large.counts / small.counts.clip(1e-9)).tolist(), strict=True))
    assert grown["reference"] == 1
    assert grown["row"] == grown["reference_pair"] == grown["picture"] == 4
    assert grown["own_pair"] == 16


def test_own_tokens_are_attended_to_again_beside_each_reference() -> None:
    at = TERMS.index("own_pair")
    one, three = (Configuration(references=count).counts[at] for count in (1, 3))
    assert (one, three) == (25 * 3, 25 * 7)


def test_a_known_subject_pays_for_no_pass() -> None:
    known, new = Configuration(references=2), Configuration(references=2, entries=5, is_new=True)
    found = dict(zip(TERMS, (new.counts - known.counts).tolist(), strict=True))
    assert {name: count for name, count in found.items() if count} == {"image": 2, "entry": 10}


def test_a_square_has_exponent_two() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_the_interval_of_an_exponent_holds_the_one_behind_the_noise() -> None:
    rng = np.random.default_rng(0)
    xs = [1.0, 2.0, 4.0, 8.0]
    samples = [[3 * x**1.5 * rng.normal(1, 0.05) for _ in range(20)] for x in xs]
    value, low, high = exponent_interval(xs, samples)
    assert low < value < high
    assert low < 1.5 < high
    assert high - low < 0.2


def test_the_range_of_an_exponent_is_that_of_leaving_one_out() -> None:
    value, low, high = exponent_range([1, 2, 4], [1, 2, 8])
    assert [value, low, high] == pytest.approx([1.5, 1, 2])
