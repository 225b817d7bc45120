"""Averaged weights: what a run is validated and ends with.

They are kept where the weights are, sharded as they are, or on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bootpig_rt.training.config import EmaDevice


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process: its own shard, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Ema:
    """Running average of trainable parameters, with a decay that ramps up from the start."""

    def __init__(
        self, named: dict[str, nn.Parameter], decay: float, device: EmaDevice = "device"
    ) -> None:
        """Start from the parameters as they are; those on the host must not be sharded."""
        self.named, self.decay = named, decay
        self.average: dict[str, Tensor] = {}
        for name, parameter in named.items():
            start = parameter.detach()
            self.average[name] = start.to("cpu", copy=True) if device == "host" else start.clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self.average.values()]
        parameters = [
            local(parameter.detach()).to(average.device)
            for parameter, average in zip(self.named.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and average: call it twice to come back."""
        for name, parameter in self.named.items():
            weights, average = local(parameter.detach()), local(self.average[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)


@contextmanager
def averaged(ema: Ema, modules: Iterable[nn.Module]) -> Iterator[None]:
    """The averaged weights and evaluation mode, for the time of a `with` block."""
    were_training = {module: module.training for module in modules}
    ema.swap()
    for module in were_training:
        module.eval()
    try:
        yield
    finally:
        ema.swap()
        for module, was_training in were_training.items():
            module.train(was_training)
