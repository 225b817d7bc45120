"""Which samples a step takes: whole epochs, few shards at a time, one size in a step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from bootpig_rt.training.order import Order


def steps_of(order: Order, count: int, batch: int, seed: int = 1, first: int = 0) -> Any:
    return [order.step(step, batch, seed) for step in range(first, first + count)]


SHARDS: list[tuple[list[int], int]] = [
    ([12], 0),
    ([3], 0),
    ([5, 0, 4, 3], 4),
    ([4, 4, 4, 1], 5),
    ([1] * 9, 2),
    ([1], 3),
]


@pytest.mark.parametrize("batch", [1, 2, 5, 12])
@pytest.mark.parametrize(("shards", "window"), SHARDS)
def test_every_epoch_shows_each_sample_once(shards: list[int], window: int, batch: int) -> None:
    order, samples = Order(shards, window=window), sum(shards)
    assert order.num_samples == samples
    seen = torch.cat(steps_of(order, -(-3 * samples // batch), batch))
    for epoch in range(3):
        shown = seen[epoch * samples : (epoch + 1) * samples]
        assert shown.sort().values.tolist() == list(range(samples))


@pytest.mark.parametrize("window", [0, 16])
def test_each_epoch_and_each_seed_has_an_order_of_its_own(window: int) -> None:
    order = Order([8] * 5, window=window)
    orders = [tuple(order.step(epoch, 40, seed).tolist()) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("buckets", [None, np.arange(40) % 3])
def test_an_order_is_a_function_of_seed_and_step_alone(buckets: Any) -> None:
    def make() -> Order:
        return Order([8] * 5, window=16, buckets=buckets)

    whole = [step.tolist() for step in steps_of(make(), 60, 4)]
    backwards = [make().step(step, 4, 1).tolist() for step in reversed(range(60))]
    assert backwards[::-1] == whole


def test_a_window_reads_from_few_shards_and_each_shard_is_read_in_one_or_two_of_them() -> None:
    order = Order([10] * 30, window=40)
    windows = [step.numpy() // 10 for step in steps_of(order, 7, 40)]
    assert all(len(set(window.tolist())) <= 5 for window in windows)
    shown = Counter(shard for window in windows for shard in set(window.tolist()))
    assert max(shown.values()) <= 2
    firsts = [int(order.step(0, 40, seed)[0]) // 10 for seed in range(20)]
    assert len(set(firsts)) > 8  # shards are shuffled too
    first = order.step(0, 40, 1).tolist()
    assert first != sorted(first)
    assert np.abs(np.diff(np.array(first) // 10)).astype(bool).sum() > 15  # and mixed in a window


def test_a_window_of_all_samples_is_a_plain_shuffle() -> None:
    plain = np.random.default_rng((0, 7, 2)).permutation(30)
    for window in (0, 30, 100):
        order = Order([10, 20], window=window)
        assert order.step(2, 30, 7).tolist() == plain.tolist()


BUCKETS = np.array([0] * 17 + [3] * 5 + [1] * 30 + [0] * 8)


@pytest.mark.parametrize("batch", [1, 4, 7, 40, 200])
def test_all_samples_of_a_step_are_of_one_bucket_and_all_are_shown_as_often(batch: int) -> None:
    order = Order([20, 20, 20], buckets=BUCKETS, window=24)
    epochs = 12
    steps = steps_of(order, epochs * 60 // batch, batch)
    counts: Counter[int] = Counter()
    for step in steps:
        assert len(step) == batch
        assert len(set(BUCKETS[step.numpy()].tolist())) == 1
        counts.update(step.tolist())
    # What does not fill a step waits for the next epoch, and the last steps are of any bucket.
    for bucket in (0, 1, 3):
        members = np.flatnonzero(BUCKETS == bucket).tolist()
        shown = [counts[member] for member in members]
        assert max(shown) - min(shown) <= 1
        assert abs(sum(shown) - epochs * len(members)) <= 2 * batch


def test_buckets_are_mixed_over_an_epoch() -> None:
    order = Order([60], buckets=BUCKETS)
    of_step = [int(BUCKETS[int(step[0])]) for step in steps_of(order, 60, 1)]
    changes = sum(one != other for one, other in pairwise(of_step))
    assert changes > 15


def test_a_set_of_one_sample_shows_it_in_every_place() -> None:
    assert Order([1]).step(5, 7, 0).tolist() == [0] * 7
