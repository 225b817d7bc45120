"""Random numbers belong to samples, not to processes."""

from __future__ import annotations

import pytest
import torch

from bootpig_rt.training.draws import Draws


def test_seeds_steps_and_places_have_random_numbers_of_their_own_each_time_the_same() -> None:
    keys = [(seed, step, place) for seed in (0, 1) for step in range(20) for place in (0, 1, 2)]
    drawn = [float(Draws(seed, step, [place]).uniform()) for seed, step, place in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [float(Draws(seed, step, [place]).uniform()) for seed, step, place in keys]


def test_a_sample_draws_the_same_in_any_company() -> None:
    together = Draws(3, 5, range(6))
    first, second = together.normal(4, 2), together.uniform()
    order = together.order(4, 10)
    for place in range(6):
        alone = Draws(3, 5, [place])
        assert torch.equal(alone.normal(4, 2)[0], first[place])
        assert torch.equal(alone.uniform()[0], second[place])
        assert (alone.order(0, 10) == order) == (place == 4)
    part = Draws(3, 5, range(6)).part([5, 2])
    assert torch.equal(part.normal(4, 2), first[[5, 2]])


def test_several_draws_of_one_sample_differ_and_none_is_none() -> None:
    draws = Draws(0, 0, range(3))
    noise = draws.normal(5, of=[1, 1, 2])
    assert noise.shape == (3, 5)
    assert len({tuple(row.tolist()) for row in noise}) == 3
    assert draws.normal(4, 2, of=[]).shape == (0, 4, 2)


def test_numbers_are_of_unit_variance_and_from_zero_to_one() -> None:
    draws = Draws(0, 0, range(200))
    noise, share = draws.normal(50), draws.uniform(50)
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    assert 0 <= float(share.min()) < 0.01 < 0.99 < float(share.max()) < 1


def test_what_is_drawn_while_samples_are_read_is_apart_and_always_the_same() -> None:
    draws = Draws(3, 5, range(4))
    reading = draws.of_reading()
    first = reading.normal(6)
    assert not torch.equal(draws.normal(6), first)
    assert torch.equal(draws.of_reading().normal(6), first)
    assert torch.equal(Draws(3, 5, range(4)).part([2]).of_reading().normal(6), first[[2]])
    keys = [Draws(seed, step, [0]).key for seed in (0, 1) for step in (0, 1)]
    assert len(set(keys)) == 4
    assert draws.key != reading.key == Draws(3, 5, range(4)).of_reading().key
