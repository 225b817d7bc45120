"""The cost model finds prices that it is shown, and plans with them."""

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
    fit,
    machines_for,
    predict,
)
from bootpig_rt.errors import ParameterError

SETTINGS = [
    Configuration(steps, batch, references, size)
    for steps in (4, 25)
    for batch in (1, 4)
    for references in (1, 3)
    for size in (32, 64, 128)
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
    prices = (5.0, 0.4, 2.0, 0.3, 3.0)
    rng = np.random.default_rng(0)
    found = fit([(c.counts, predict(prices, c.counts) * rng.normal(1, 0.05)) for c in SETTINGS])
    other = Configuration(12, 2, 2, 96).counts
    assert predict(found, other) == pytest.approx(predict(prices, other), rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    prices=PRICES,
    memory_prices=MEMORY_PRICES,
    field=st.sampled_from(["steps", "batch", "references", "size_px"]),
)
def test_more_of_anything_never_costs_less(
    prices: tuple[float, ...], memory_prices: tuple[float, ...], field: str
) -> None:
    small = Configuration()
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


@pytest.mark.parametrize(
    ("load", "each_ms", "utilisation", "machines"),
    [(0, 250, 0.7, 0), (60, 700, 0.7, 1), (60, 701, 0.7, 2), (6000, 250, 0.5, 50)],
)
def test_machines_cover_the_load(
    load: float, each_ms: float, utilisation: float, machines: int
) -> None:
    assert machines_for(load, each_ms, utilisation=utilisation) == machines


def test_a_load_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ParameterError, match="utilisation"):
        machines_for(60, 250, utilisation=0)


def test_a_square_has_exponent_two() -> None:
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
