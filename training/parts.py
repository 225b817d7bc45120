"""Which samples of a step one process takes, and in which parts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.order import Order

Part = tuple[Tensor, Draws]
"""Samples, int64 [B], and their random numbers."""


def parts_of_step(config: TrainConfig, processes: int) -> int:
    """Into how many parts each process divides its samples of a step.

    Raises:
        ConfigError: `samples_per_step` cannot be divided so.
    """
    if not config.samples_per_step:
        return config.accumulate
    of_part = config.batch_size * processes
    parts, rest = divmod(config.samples_per_step, of_part)
    if rest or not parts:
        raise ConfigError(
            f"samples_per_step is {config.samples_per_step}, expected a multiple of batch_size "
            f"{config.batch_size} times {processes} processes: choose another batch_size"
        )
    return parts


class Parts:
    """The samples of every step that are this process's, a function of seed and step.

    Attributes:
        count: Parts of a step, taken one after another.
        samples_per_step: Of all processes together.

    Raises:
        ConfigError: `samples_per_step` of the configuration cannot be divided so.
    """

    def __init__(self, config: TrainConfig, order: Order, *, process: int, processes: int) -> None:
        self.count = parts_of_step(config, processes)
        self.samples_per_step = config.batch_size * self.count * processes
        self._order, self._seed, self._last = order, config.seed, config.steps
        self._mine = torch.arange(self.samples_per_step)[process::processes]

    def of_step(self, step: int) -> list[Part]:
        """The parts of a step."""
        indices = self._order.step(step, self.samples_per_step, self._seed)
        parts = self._mine.chunk(self.count)
        return [(indices[part], Draws(self._seed, step, part.tolist())) for part in parts]

    def after(self, step: int) -> Iterator[Part]:
        """The parts of all later steps, made when they are asked for."""
        return chain.from_iterable(map(self.of_step, range(step + 1, self._last)))
