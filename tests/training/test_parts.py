"""Which samples of a step each process takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.order import Order
from bootpig_rt.training.parts import Parts, parts_of_step


def config(**changes: Any) -> TrainConfig:
    return TrainConfig("vae", "run", steps=5, **changes)


@given(
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 4),
    step=st.integers(0, 4),
)
def test_processes_share_out_the_samples_of_a_step(
    batch: int, accumulate: int, processes: int, step: int
) -> None:
    made = config(batch_size=batch, accumulate=accumulate, seed=3)
    order = Order([20, 30])
    each = [Parts(made, order, process=k, processes=processes) for k in range(processes)]
    size = batch * accumulate * processes
    found = [part for one in each for part in one.of_step(step)]
    assert {one.samples_per_step for one in each} == {size}
    assert [len(indices) for indices, _ in found] == [batch] * accumulate * processes
    taken = torch.cat([indices for indices, _ in found]).sort().values
    assert torch.equal(taken, order.step(step, size, 3).sort().values)
    # A sample's random numbers are those of its place in the step, whoever takes it.
    places = [key[-1] for _, draws in found for key in draws.key]
    assert sorted(places) == list(range(size))


def test_what_comes_after_a_step_are_the_parts_of_the_others() -> None:
    parts = Parts(config(batch_size=2, accumulate=2), Order([50]), process=0, processes=1)
    expected = [part for step in (3, 4) for part in parts.of_step(step)]
    found = list(parts.after(2))
    assert [draws.key for _, draws in found] == [draws.key for _, draws in expected]
    assert list(parts.after(4)) == []


def test_samples_of_a_step_decide_its_parts_in_any_number_of_processes() -> None:
    made = config(batch_size=4, samples_per_step=24)
    assert [parts_of_step(made, processes) for processes in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(ConfigError, match="expected a multiple of batch_size 4 times 5 processes"):
        parts_of_step(made, 5)
