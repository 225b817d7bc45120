"""From a configuration to a trained stage: the entry that `bootpig-rt train` calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import StageName, TrainConfig
from bootpig_rt.training.stages.base import BaseStage
from bootpig_rt.training.stages.distill import DistillStage
from bootpig_rt.training.stages.pair import PairStage
from bootpig_rt.training.stages.vae import VaeStage
from bootpig_rt.training.trainer import Stage, Trainer

STAGES: dict[StageName, Callable[[TrainConfig, torch.device], Stage]] = {
    "vae": VaeStage,
    "base": BaseStage,
    "pair": PairStage,
    "distill": DistillStage,
}


def build_stage(config: TrainConfig, device: torch.device) -> Stage:
    """Load what the stage starts from and build its models on a device."""
    return STAGES[config.stage](config, device)


def train(config: TrainConfig, *, max_minutes: float | None = None) -> dict[str, Any]:
    """Run or resume a stage.

    Returns:
        `is_finished`, `step`, `result` (folder of the finished stage).

    Raises:
        ConfigError: `mixed_precision` is fp16 on a machine without a GPU.
    """
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    # One process first: the others then find its tokenizer and its latents.
    with accelerator.main_process_first():
        stage = build_stage(config, accelerator.device)
    trainer = Trainer(config, stage, accelerator)
    is_finished = trainer.run(max_minutes=max_minutes)
    result = str(Path(config.output) / "result")
    return {"is_finished": is_finished, "step": trainer.step, "result": result}


def describe(config: TrainConfig) -> dict[str, Any]:
    """Count parameters and samples without training."""
    stage = build_stage(config, torch.device("cpu"))
    parameters = {
        name: {
            "parameters": sum(p.numel() for p in module.parameters()),
            "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
        }
        for name, module in stage.modules().items()
    }
    seen = config.steps * config.batch_size * config.accumulate
    return {
        "modules": parameters,
        "samples": stage.num_samples,
        "samples_seen": seen,
        "epochs": round(seen / stage.num_samples, 2),
        "config": asdict(config),
    }
