"""The operations of a walk as units of training: computed anew, compiled, sharded one by one.

diffusers' own switches have no effect on a U-Net that is walked explicitly. A unit is what calls
one module's operations instead: its activations are dropped together, and its weights are gathered
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from bootpig_rt.models.unet import WalkedUNet
from bootpig_rt.training.config import Checkpointing

# Each shape of a block is compiled once, and all share torch's count of them; past its default of
# eight the compiler would give up.
COMPILED_SHAPES = 256


class Unit(nn.Module):
    """Calls the operations of one module; its weights are read within these calls alone."""

    def __init__(self, module: nn.Module, *, checkpointing: Checkpointing) -> None:
        super().__init__()
        self.module = module
        self._is_computed_anew = checkpointing == "blocks"

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(module, *args)`, whose activations may be computed anew for the gradients."""
        if self._is_computed_anew and torch.is_grad_enabled():
            return checkpoint(function, self.module, *args, use_reentrant=False)
        return function(self.module, *args)


def make_units(walks: Iterable[WalkedUNet], *, checkpointing: Checkpointing) -> nn.ModuleList:
    """Let units call the operations of walks.

    A module in two walks, as when weights are shared, is one unit.
    """
    units: dict[nn.Module, Unit] = {}
    for walk in walks:
        for module in walk.operations():
            if module not in units:
                units[module] = Unit(module, checkpointing=checkpointing)

        def around(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
            return units[module](function, *args)

        walk.around = around
    return nn.ModuleList(units.values())


def compile_blocks(modules: Iterable[nn.Module]) -> int:
    """Compile residual and feed-forward blocks in place; return how many.

    These are what a compiler makes faster: norms, activations and sums between products. Attention
    has a kernel of its own, and its rows differ from step to step.
    """
    torch._dynamo.config.recompile_limit = max(
        COMPILED_SHAPES, torch._dynamo.config.recompile_limit
    )
    blocks = [
        block
        for module in modules
        for block in module.modules()
        if isinstance(block, ResnetBlock2D | FeedForward)
    ]
    for block in blocks:
        block.compile()
    return len(blocks)
