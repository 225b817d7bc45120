"""Randomness of training: random numbers for each sample of a step; `order.py` says which it takes.

Every sample of a step has a stream of its own, fixed by (seed, step, place in the step). So nothing
about randomness is ever stored, and a step is the same however it is divided over processes and
accumulation, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEP, _READING, _WHOLE = 1, 2, 4
"""What a stream is for; `order.py` has 0 and 3."""


class Draws:
    """Random numbers of B samples of one step, by their places in it; float32 on the CPU.

    Each call goes on in every sample's own stream.
    """

    def __init__(self, seed: int, step: int, places: Sequence[int]) -> None:
        self._seeds: list[tuple[int, ...]] = [(_STEP, seed, step, place) for place in places]

    @cached_property
    def _rngs(self) -> list[np.random.Generator]:
        return [np.random.default_rng(seeds) for seeds in self._seeds]

    def __len__(self) -> int:
        return len(self._seeds)

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """Which streams these are."""
        return tuple(self._seeds)

    def part(self, rows: Sequence[int]) -> Draws:
        """The streams of some of the samples."""
        found = Draws.__new__(Draws)
        found._seeds = [self._seeds[row] for row in rows]
        found._rngs = [self._rngs[row] for row in rows]
        return found

    def of_reading(self) -> Draws:
        """Fresh streams for what is drawn while samples are read, by whichever thread, whenever."""
        found = Draws.__new__(Draws)
        found._seeds = [(_READING, *seeds[1:]) for seeds in self._seeds]
        return found

    def uniform(self, *shape: int, of: Sequence[int] | None = None) -> Tensor:
        """From 0 to 1, [B, *shape]; with `of`, one for each row named there."""
        return _stack([rng.random(shape, np.float32) for rng in self._of(of)], shape)

    def uniform_of_step(self) -> float:
        """From 0 to 1, the same for all samples of the step, in whatever process; drawn anew."""
        _, seed, step, _ = self._seeds[0]
        return float(np.random.default_rng((_WHOLE, seed, step)).random())

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
