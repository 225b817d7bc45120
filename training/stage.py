"""What a stage adds to the loop. A stage knows models and batches, never files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from bootpig_rt.models.unet import WalkedUNet
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.order import Order


@dataclass(frozen=True)
class Validation:
    """Figures to log, and rows of pictures, each uint8 [N, S, S, 3], for a sheet."""

    figures: dict[str, float] = field(default_factory=dict)
    rows: list[NDArray[np.uint8]] = field(default_factory=list)


class Stage(Protocol):
    """One stage of training."""

    order: Order

    def modules(self) -> dict[str, nn.Module]:
        """Modules whose trainable parameters are optimised, averaged and stored."""

    def walks(self) -> list[WalkedUNet]:
        """U-Nets among them that are walked explicitly, operation by operation."""

    def frozen(self) -> list[nn.Module]:
        """What else it computes with; each process has all of it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, each with `params` and its own `lr`."""

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Begin to read what `loss` will be asked for next, in this order."""

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the samples `indices` [B], and figures to log; all chance is in `draws`."""

    def validate(self) -> Validation:
        """Draw on fixed seeds; called with averaged weights in place."""

    def result(self) -> Any:
        """What the stage has made, with averaged weights in place: a `Pair`, or a VAE."""


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module that are trained."""
    return [p for p in module.parameters() if p.requires_grad]
