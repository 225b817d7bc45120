"""AdamW, fused or with moments in eight bits, or Muon; how the rate goes from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.training.config import OptimizerConfig
from bootpig_rt.training.muon import Muon


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, modules: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """The optimiser of a configuration over groups of parameters, each with its own `lr`.

    `modules` own them: Muon does not take embeddings, of which a step has a few rows, for matrices.

    Raises:
        BackendUnavailable: bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw":
        # One launch for all parameters; on a CPU too.
        return torch.optim.AdamW(groups, fused=True, **settings)
    if config.name == "muon":
        inside = (each for module in modules for each in module.modules())
        embeddings = {id(each.weight) for each in inside if isinstance(each, nn.Embedding)}
        return Muon(groups, others=embeddings, **settings)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise BackendUnavailable(
            f"optimizer.name is {config.name}, for which bitsandbytes is missing ({error}): "
            'pip install "bootpig-rt[adam8bit]", or take adamw'
        ) from error
    make: Any = AdamW8bit
    optimizer: torch.optim.Optimizer = make(groups, **settings)
    return optimizer


def learning_rate_share(step: int, steps: int, warmup_steps: int, final_share: float) -> float:
    """Share of the top learning rate at a step: linear warm-up, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
