"""The state of a training on disk: averaged weights, and checkpoints as safetensors.

Knows parameters by name, the optimiser's state, and a folder of checkpoints; knows nothing about
stages or how steps are made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bootpig_rt.errors import CheckpointError, StorageError, describe_os_error

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


@dataclass(frozen=True)
class TrainingState:
    """All that a checkpoint holds beside the number of the step.

    `scaler` is the gradient scaler of float16, None in other precisions; `samples_per_step` counts
    over all `processes`.
    """

    parameters: dict[str, nn.Parameter]
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: Any
    samples_per_step: int
    processes: int

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
        state = {
            "step": step,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "samples_per_step": self.samples_per_step,
            "processes": self.processes,
        }
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
        if state["samples_per_step"] != self.samples_per_step:
            raise CheckpointError(
                f"the checkpoint {folder} is of steps of {state['samples_per_step']} samples in "
                f"{state['processes']} processes, this run has steps of {self.samples_per_step} in "
                f"{self.processes}; start as many processes, or choose batch_size and accumulate "
                "so that batch_size * accumulate * processes is the same",
                folder,
            )
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


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, `step-N/` each; one appears whole or not at all.

    Attributes:
        folder: Made with the first of them.
        keep: So many of the newest stay.
    """

    folder: Path
    keep: int

    def all(self) -> list[Path]:
        """Those that are there, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def save(self, state: TrainingState, step: int) -> None:
        """Write one and drop old ones.

        Raises:
            StorageError: The disk is full or refuses; older checkpoints are kept.
        """
        temporary, final = self.folder / ".tmp", self.folder / f"step-{step:07d}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            state.write(temporary, step)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise StorageError(
                f"cannot write the checkpoint {final}: {reason}; older checkpoints are kept, "
                "run the same command again to go on from the last one"
            ) from error
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
