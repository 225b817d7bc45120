"""The state of a training: averaged weights, and checkpoints as safetensors.

Knows parameters by name and the optimiser's state; knows nothing about stages, steps or folders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bootpig_rt.errors import CheckpointError

OPTIMIZER_KEYS = ("step", "exp_avg", "exp_avg_sq")


class Ema:
    """Running average of trainable parameters, with a decay that ramps up from the start."""

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        """Start from the parameters as they are."""
        self.named, self.decay = named, decay
        self.average = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.data for p in self.named.values()], 1 - decay
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and average: call it twice to come back."""
        for name, parameter in self.named.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)


class Averaged:
    """The averaged weights and evaluation mode, for the time of a `with` block."""

    def __init__(self, ema: Ema, modules: list[nn.Module]) -> None:
        """Do nothing yet."""
        self.ema, self.modules = ema, modules
        self.were_training = [module.training for module in modules]

    def __enter__(self) -> None:
        self.ema.swap()
        for module in self.modules:
            module.eval()

    def __exit__(self, *_: object) -> None:
        self.ema.swap()
        for module, was_training in zip(self.modules, self.were_training, strict=True):
            module.train(was_training)


@dataclass(frozen=True)
class TrainingState:
    """All that a checkpoint holds beside the number of the step.

    `scaler` is the gradient scaler of float16, None in other precisions.
    """

    parameters: dict[str, nn.Parameter]
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: Any

    def write(self, folder: Path, step: int) -> None:
        """Write `state.safetensors` and `state.json` into an existing folder.

        Raises:
            OSError: A file cannot be written.
            SafetensorError: So says safetensors of the large file.
        """
        weights, averages = self.parameters, self.ema.average
        tensors = {f"weight/{k}": p.detach().cpu().contiguous() for k, p in weights.items()}
        tensors |= {f"average/{k}": v.cpu().contiguous() for k, v in averages.items()}
        for name, parameter in weights.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().contiguous()
        save_file(tensors, folder / "state.safetensors")
        state = {"step": step, "scaler": self.scaler.state_dict() if self.scaler else None}
        (folder / "state.json").write_text(json.dumps(state))

    def read(self, folder: Path) -> int:
        """Load what `write` wrote, in place, and return the number of the step.

        Raises:
            CheckpointError: A file is missing or damaged, or of another model.
        """
        try:
            tensors = load_file(folder / "state.safetensors")
            state = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged ({error}); delete it to go on from the one "
                "before it",
                folder,
            ) from error
        for name, parameter in self.parameters.items():
            for key in (f"weight/{name}", f"average/{name}"):
                if key not in tensors or tensors[key].shape != parameter.shape:
                    raise CheckpointError(
                        f"the checkpoint {folder} has no {key} of shape {list(parameter.shape)}: "
                        "it is of another model; use another output folder to start anew",
                        folder,
                    )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.ema.average[name].copy_(tensors[f"average/{name}"])
                for key in OPTIMIZER_KEYS:
                    value = tensors.get(f"optimizer/{key}/{name}")
                    if value is None:  # a parameter that never had a gradient
                        continue
                    device = "cpu" if key == "step" else parameter.device
                    self.optimizer.state[parameter][key] = value.to(device)
        if state["scaler"] and self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        return int(state["step"])
