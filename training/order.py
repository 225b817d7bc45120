"""Which samples a step takes: whole epochs in random orders that read few shards at a time.

The order is a function of seed and step, so nothing about it is ever stored, a run goes on where it
was, and any number of processes take the same samples together. All samples of a step are of one
bucket, that is of one size, so a step may be divided in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EPOCH, _BUCKETS = 0, 3
"""What a random order is of; `draws.py` has 1 and 2."""

Indices = NDArray[np.int64]


class Order:
    """The order of the samples of a data set.

    An epoch of a bucket goes through its shards in random order, in windows of so many samples,
    each shuffled as a whole. So a step reads from the shards of one window, and a window's are read
    once. Samples that do not fill a step are in the first step of the bucket's next epoch.

    Args:
        shards: Samples in each shard.
        buckets: Of each sample, int [N]; None where all are of one size.
        window: Samples that are shuffled together; 0 for all.
    """

    def __init__(
        self, shards: Sequence[int], *, buckets: NDArray[Any] | None = None, window: int = 0
    ) -> None:
        bounds = np.concatenate([[0], np.cumsum(shards, dtype=np.int64)])
        self.num_samples = int(bounds[-1])
        if buckets is None:
            buckets = np.zeros(self.num_samples, np.uint8)
        self._buckets: list[_Bucket] = []
        for number in np.unique(buckets).tolist():
            members = np.flatnonzero(buckets == number)
            in_shards = np.searchsorted(members, bounds)
            self._buckets.append(_Bucket(len(self._buckets), members, in_shards, window))
        self._sizes = tuple(len(bucket.members) for bucket in self._buckets)

    def step(self, step: int, batch_size: int, seed: int) -> Tensor:
        """The samples of a step, int64 [batch_size].

        `batch_size` counts over all processes and accumulation.
        """
        bucket, number = self._bucket_of(step, batch_size, seed)
        return torch.from_numpy(bucket.take(number * batch_size, batch_size, seed))

    def _bucket_of(self, step: int, batch_size: int, seed: int) -> tuple[_Bucket, int]:
        """The bucket of a step, and how many steps before it were of that bucket."""
        if len(self._buckets) == 1:
            return self._buckets[0], step
        # Whole steps of all buckets in so many epochs are at most those of their samples together.
        epoch = step * batch_size // self.num_samples
        while sum(_steps(self._sizes, epoch + 1, batch_size)) <= step:
            epoch += 1
        before = _steps(self._sizes, epoch, batch_size)
        labels = _labels(self._sizes, epoch, batch_size, seed)
        place = step - sum(before)
        chosen = int(labels[place])
        return self._buckets[chosen], before[chosen] + int((labels[:place] == chosen).sum())


def _steps(sizes: tuple[int, ...], epochs: int, batch_size: int) -> list[int]:
    """Whole steps of each bucket in its first epochs."""
    return [epochs * size // batch_size for size in sizes]


@lru_cache(maxsize=4)
def _labels(sizes: tuple[int, ...], epoch: int, batch_size: int, seed: int) -> Indices:
    """The bucket of each step of an epoch, in random order."""
    first, after = (_steps(sizes, number, batch_size) for number in (epoch, epoch + 1))
    counts = np.subtract(after, first)
    rng = np.random.default_rng((_BUCKETS, seed, epoch))
    labels: Indices = rng.permutation(np.repeat(np.arange(len(sizes)), counts))
    return labels


class _Bucket:
    """Samples of one size: `members` of the data set, those of shard s from `bounds[s]` on."""

    def __init__(self, number: int, members: Indices, bounds: Indices, window: int) -> None:
        self.number, self.members, self._bounds = number, members, bounds
        self._window_size = min(window or len(members), len(members))
        self._window = lru_cache(maxsize=2)(self._make_window)

    def take(self, first: int, count: int, seed: int) -> Indices:
        """The samples at some places of the bucket's epochs one after another, [count]."""
        parts: list[Indices] = []
        done = 0
        while done < count:
            epoch, offset = divmod(first + done, len(self.members))
            window, offset = divmod(offset, self._window_size)
            parts.append(self._window(seed, epoch, window)[offset : offset + count - done])
            done += len(parts[-1])
        return np.concatenate(parts)

    def _make_window(self, seed: int, epoch: int, window: int) -> Indices:
        """The samples of a window of an epoch, in their order."""
        key = (_EPOCH, seed, epoch, self.number)
        if self._window_size == len(self.members):
            return self.members[np.random.default_rng(key).permutation(len(self.members))]
        shards = np.random.default_rng((*key, 0)).permutation(len(self._bounds) - 1)
        starts, ends = self._bounds[shards], self._bounds[shards + 1]
        # Places of the shards in the epoch, one behind the other.
        after = np.cumsum(ends - starts)
        first = window * self._window_size
        last = min(first + self._window_size, len(self.members))
        offsets = ends - after
        parts = []
        for place in range(int(np.searchsorted(after, first, "right")), len(shards)):
            low = max(first + offsets[place], starts[place])
            parts.append(self.members[low : min(last + offsets[place], ends[place])])
            if after[place] >= last:
                break
        found = np.concatenate(parts)
        return found[np.random.default_rng((*key, window + 1)).permutation(len(found))]
