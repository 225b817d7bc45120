"""What all processes know after a step, and what becomes of a step that is not finite.

Gradients are averaged by torch. Whatever else decides how a run goes on is summed over the
processes here, in one exchange a step, so that all of them do the same.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bootpig_rt.errors import NumericalError
from bootpig_rt.training.config import OnNan
from bootpig_rt.training.processes import Together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Here:
    """What one process has to say after a step.

    Attributes:
        norm: Of the averaged gradients, the same in all.
        spoilt: 1 if a loss was not finite, else 0.
        stop: It was asked to stop, or time is up.
        requeue: A signal of a scheduler asked it.
        failed: Its checkpoint could not be written.
    """

    norm: Tensor
    spoilt: Tensor
    stop: bool
    requeue: bool
    failed: bool


@dataclass(frozen=True)
class Agreement:
    """What all processes know.

    Attributes:
        norm: Of the gradients.
        spoilt: Losses that are not finite, one at most in a process.
        stop: Processes that were asked to stop, by whomever.
        requeue: Processes that a signal of a scheduler asked.
        failed: Processes whose checkpoint could not be written.
    """

    norm: float
    spoilt: int
    stop: int
    requeue: int
    failed: int

    @property
    def is_finite(self) -> bool:
        """The step may be taken: a gradient that is not finite would spoil every weight."""
        return math.isfinite(self.norm) and not self.spoilt


def agree(together: Together, here: Here) -> Agreement:
    """Tell all processes how it is here, and learn how it is there: the one wait of a step."""
    device = together.accelerator.device
    said = (here.stop, here.requeue, here.failed)
    flags = torch.tensor([float(flag) for flag in said], device=device)
    total = together.sum(torch.cat([here.spoilt.to(device).reshape(1), flags]))
    found = torch.cat([here.norm.to(device).reshape(1), total]).tolist()
    return Agreement(found[0], *(int(value) for value in found[1:]))


class Skips:
    """Counts steps that are left out in a row, and ends the run where the settings say so.

    Args:
        on_nan, max_skips: Of the configuration.
        checkpoints: Their folder, for the message.
        is_scaled: The loss is scaled, as in float16, whose gradients overflow until the scale has
            fallen.
    """

    def __init__(
        self, on_nan: OnNan, max_skips: int, checkpoints: Path, *, is_scaled: bool
    ) -> None:
        self._on_nan, self._most, self._checkpoints = on_nan, max_skips, checkpoints
        self._is_scaled = is_scaled
        self._in_a_row = 0

    def count(self, agreed: Agreement, *, step: int, processes: int) -> None:
        """Take note of a step; all processes raise at once, if any does.

        Raises:
            NumericalError: It is not finite, and `on_nan` says to stop or it is one too many.
        """
        if agreed.is_finite:
            self._in_a_row = 0
            return
        if self._is_scaled and not agreed.spoilt:
            return
        self._in_a_row += 1
        where = (
            f"the loss is not finite in {agreed.spoilt} of {processes} processes"
            if agreed.spoilt
            else f"the norm of the gradients is {agreed.norm}"
        )
        if self._on_nan == "skip" and self._in_a_row <= self._most:
            logger.warning("step %d is left out: %s", step, where)
            return
        after = f", {self._in_a_row} times in a row" if self._on_nan == "skip" else ""
        raise NumericalError(
            f"{where} at step {step}{after}, expected a finite number; the last checkpoint is kept "
            f"in {self._checkpoints}; go on with a lower optimizer.learning_rate, or start anew "
            "with mixed_precision=no"
        )
