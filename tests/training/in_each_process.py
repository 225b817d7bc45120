"""Run by `test_processes.py` in each of two processes, and loaded by it for what one computes.

Trains small things and writes what came of it to FOLDER/rank-N.json and to files of tensors.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from bootpig_rt.errors import BootPIGError
from bootpig_rt.training.config import OptimizerConfig, TrainConfig, VaeConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.order import Order
from bootpig_rt.training.run import build_trainer
from bootpig_rt.training.stage import Validation
from bootpig_rt.training.trainer import Trainer

STEPS = 4


class LineStage:
    """Learns a line through noisy points; its second part reads some samples only."""

    order = Order([13])

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.line, self.bend = nn.Linear(3, 1), nn.Linear(3, 1)
        self.points = torch.linspace(-1, 1, 39).reshape(13, 3)
        self.seen: list[list[int]] = []
        self.on_loss: Callable[[Tensor, int], Tensor] = lambda loss, step: loss

    def modules(self) -> dict[str, nn.Module]:
        return {"line": self.line, "bend": self.bend}

    def parameter_groups(self) -> list[dict[str, Any]]:
        parameters = [*self.line.parameters(), *self.bend.parameters()]
        return [{"params": parameters, "lr": 0.05}]

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        pass

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(indices.tolist())
        x = self.points[indices]
        wanted = x.sum(1, keepdim=True) + 0.1 * draws.normal(1)
        said = self.line(x)
        bent = draws.uniform() < 0.3
        if bent.any():
            said = said + bent[:, None] * self.bend(x)
        loss = self.on_loss((said - wanted).pow(2).mean(), len(self.seen))
        return loss, {"size": self.line.weight.abs().sum()}

    def validate(self) -> Validation:
        return Validation()

    def result(self) -> None:
        return None


def line_config(output: Path, **changes: Any) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=0.05, warmup_steps=2, ema_decay=0.9)
    settings: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 2,
        "seed": 5,
        "log_every": 1,
        "validate_every": 0,
        "optimizer": optimizer,
        "vae": VaeConfig(),
    }
    return TrainConfig("vae", str(output), **{**settings, **changes})


def line_trainer(
    accelerator: Accelerator, output: Path, stage: LineStage | None = None, **changes: Any
) -> Trainer:
    config = line_config(output, **changes)
    return Trainer(config, stage or LineStage(), accelerator, lambda _, folder: folder.mkdir())


def weights(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    return found | {f"average/{name}": v.clone() for name, v in trainer.ema.average.items()}


def real_trainer(accelerator: Accelerator, values: dict[str, Any]) -> Trainer:
    return build_trainer(msgspec.convert(values, TrainConfig), accelerator)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = int(accelerator.process_index)
    said: dict[str, Any] = {"processes": int(accelerator.num_processes)}

    def keep(name: str, trainer: Trainer) -> None:
        save_file(weights(trainer), folder / f"{name}-{rank}.safetensors")

    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "accumulated": {"batch_size": 1, "accumulate": 2},
    }
    for name, changes in ways.items():
        trainer = line_trainer(accelerator, folder / name, **changes)
        trainer.run()
        keep(name, trainer)
        said[f"seen {name}"] = trainer.stage.seen  # type: ignore[attr-defined]

    for name, values in json.loads((folder / "real.json").read_text()).items():
        trainer = real_trainer(accelerator, values)
        trainer.run()
        keep(name, trainer)

    # A gradient that is not finite in the second process alone.
    stage = LineStage()
    stage.on_loss = lambda loss, step: loss * (math.inf if rank and step == 3 else 1)
    trainer = line_trainer(accelerator, folder / "gradient", stage, log_every=STEPS + 1)
    trainer.run()
    keep("gradient", trainer)

    # A loss that is NaN there from its third step.
    stage = LineStage()
    stage.on_loss = lambda loss, step: loss * (math.nan if rank and step >= 3 else 1)
    trainer = line_trainer(accelerator, folder / "loss", stage, log_every=2)
    try:
        trainer.run()
    except BootPIGError as error:
        said["loss"] = [type(error).__name__, trainer.step]

    # Only the second process is asked to stop.
    stage = LineStage()
    trainer = line_trainer(accelerator, folder / "stopped", stage)

    def ask(loss: Tensor, step: int) -> Tensor:
        if rank and step == 3:
            trainer.ask_to_stop()
        return loss

    stage.on_loss = ask
    said["stopped"] = [trainer.run(), trainer.step]
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
