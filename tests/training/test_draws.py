"""Which samples a step takes, and that random numbers belong to samples, not to processes."""

from __future__ import annotations

import pytest
import torch

from bootpig_rt.training.draws import Draws, step_indices


@pytest.mark.parametrize(("batch", "samples"), [(2, 12), (5, 12), (5, 3), (12, 12), (7, 1)])
def test_every_epoch_shows_each_sample_once(batch: int, samples: int) -> None:
    steps = -(-3 * samples // batch)
    seen = torch.cat([step_indices(step, batch, samples, seed=1) for step in range(steps)])
    for epoch in range(3):
        shown = seen[epoch * samples : (epoch + 1) * samples]
        assert shown.sort().values.tolist() == list(range(samples))


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = [
        tuple(step_indices(epoch, 40, 40, seed).tolist()) for seed in (1, 2) for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


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
