"""Randomness of training: which samples a step takes, and random numbers for each of them.

Every sample of a step has a stream of its own, fixed by (seed, step, place in the step). So nothing
about randomness is ever stored, and a step is the same however it is divided over processes and
accumulation, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EPOCH, _STEP = 0, 1


class Draws:
    """Random numbers of B samples of one step, by their places in it; float32 on the CPU.

    Each call goes on in every sample's own stream.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int]) -> None:
        self._rngs = [np.random.default_rng((_STEP, seed, step, place)) for place in places]

    def __len__(self) -> int:
        return len(self._rngs)

    def part(self, rows: Sequence[int]) -> Draws:
        """The streams of some of the samples."""
        found = Draws.__new__(Draws)
        found._rngs = [self._rngs[row] for row in rows]
        return found

    def uniform(self, *shape: int, of: Sequence[int] | None = None) -> Tensor:
        """From 0 to 1, [B, *shape]; with `of`, one for each row named there."""
        return _stack([rng.random(shape, np.float32) for rng in self._of(of)], shape)

    def normal(self, *shape: int, of: Sequence[int] | None = None) -> Tensor:
        """Of unit variance, likewise."""
        return _stack([rng.standard_normal(shape, np.float32) for rng in self._of(of)], shape)

    def order(self, row: int, count: int) -> list[int]:
        """0 to `count` - 1 in a random order, from one sample's stream."""
        found: list[int] = self._rngs[row].permutation(count).tolist()
        return found

    def rng(self, row: int) -> np.random.Generator:
        """One sample's stream itself."""
        return self._rngs[row]

    def _of(self, rows: Sequence[int] | None) -> list[np.random.Generator]:
        return self._rngs if rows is None else [self._rngs[row] for row in rows]


def _stack(drawn: list[Any], shape: tuple[int, ...]) -> Tensor:
    found: NDArray[np.float32] = np.array(drawn, np.float32).reshape(len(drawn), *shape)
    return torch.from_numpy(found)


def step_indices(step: int, batch_size: int, num_samples: int, seed: int) -> Tensor:
    """The samples of a step, int64 [batch_size]: whole epochs, each in its own random order.

    `batch_size` counts over all processes and accumulation.
    """
    first = step * batch_size
    parts: list[Tensor] = []
    done = 0
    while done < batch_size:
        epoch, offset = divmod(first + done, num_samples)
        parts.append(_epoch(seed, epoch, num_samples)[offset : offset + batch_size - done])
        done += len(parts[-1])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, num_samples: int) -> Tensor:
    rng = np.random.default_rng((_EPOCH, seed, epoch))
    return torch.from_numpy(rng.permutation(num_samples))
