"""Run by `test_processes.py` in each of two processes, and loaded by it for what one computes.

Trains small things and writes what came of it to FOLDER/rank-N.json and to files of tensors.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bootpig_rt.errors import BootPIGError
from bootpig_rt.training.config import OptimizerConfig, TrainConfig, VaeConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.ema import local
from bootpig_rt.training.order import Order
from bootpig_rt.training.processes import read_sharding
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
        self.is_whole = False
        # With shards, all processes use the same weights in a step.
        self.bends_always = "ACCELERATE_USE_FSDP" in os.environ

    def modules(self) -> dict[str, nn.Module]:
        return {"line": self.line, "bend": self.bend}

    def walks(self) -> list[Any]:
        return []

    def frozen(self) -> list[nn.Module]:
        return []

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
        if bent.any() or self.bends_always:
            said = said + bent[:, None] * self.bend(x)
        loss = self.on_loss((said - wanted).pow(2).mean(), len(self.seen))
        return loss, {"size": self.line.weight.abs().sum()}

    def validate(self) -> Validation:
        return Validation({"size": float(self.line.weight.abs().sum())})

    def result(self) -> None:
        self.is_whole = not isinstance(self.line.weight, DTensor)


class WideStage(LineStage):
    """The same with enough weights for several buckets of gradients."""

    def result(self) -> None:
        return None

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(  # type: ignore[assignment]
            nn.Linear(3, 600), nn.Linear(600, 600), nn.Linear(600, 600), nn.Linear(600, 1)
        )

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.line(self.points[indices]) + self.bend(self.points[indices])).pow(2).mean(), {}


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
    sharding = read_sharding(config)
    made = stage or LineStage()
    return Trainer(config, made, accelerator, lambda _, folder: folder.mkdir(), sharding)


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: whole(p) for name, p in trainer.parameters.items()}
    return found | {f"average/{name}": whole(v) for name, v in trainer.ema.average.items()}


def real_trainer(accelerator: Accelerator, values: dict[str, Any]) -> Trainer:
    config = msgspec.convert(values, TrainConfig)
    return build_trainer(config, accelerator, read_sharding(config))


def stop_after(trainer: Trainer, steps: int) -> Trainer:
    """Ask to stop within a step."""
    loss = trainer.stage.loss

    def stopping(indices: Tensor, draws: Draws) -> Any:
        if trainer.step + 1 == steps:
            trainer.ask_to_stop()
        return loss(indices, draws)

    trainer.stage.loss = stopping  # type: ignore[method-assign]
    return trainer


def train_all(accelerator: Accelerator, folder: Path) -> None:
    """Everything but what ends badly."""
    rank = int(accelerator.process_index)
    said: dict[str, Any] = {"processes": int(accelerator.num_processes)}

    def keep(name: str, trainer: Trainer) -> None:
        save_file(weights(trainer), folder / f"{name}-{rank}.safetensors")

    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "accumulated": {"batch_size": 1, "accumulate": 2},
        "given": {"samples_per_step": 4},
        "often": {"validate_every": 1, "checkpoint_every": 1},
    }
    for name, changes in ways.items():
        trainer = line_trainer(accelerator, folder / name, **changes)
        trainer.run()
        keep(name, trainer)
        said[f"seen {name}"] = trainer.stage.seen  # type: ignore[attr-defined]
        said[f"whole {name}"] = trainer.stage.is_whole  # type: ignore[attr-defined]

    for name, values in json.loads((folder / "real.json").read_text()).items():
        trainer = real_trainer(accelerator, values)
        trainer.run()
        keep(name, trainer)
        said[f"local {name}"] = {
            "weights": sum(local(p).nbytes for p in trainer.parameters.values()),
            "moments": sum(
                local(value).nbytes
                for p in trainer.parameters.values()
                for key, value in trainer.optimizer.state.get(p, {}).items()
                if key != "step"
            ),
            "average": sum(local(value).nbytes for value in trainer.ema.average.values()),
        }

    # A run of one process that goes on here, and one from here that goes on in one process.
    trainer = line_trainer(accelerator, folder / "from-one")
    trainer.run()
    keep("from-one", trainer)
    stop_after(line_trainer(accelerator, folder / "part"), 2).run()
    trainer = line_trainer(accelerator, folder / "part")
    trainer.run()
    keep("part", trainer)

    # A gradient that is not finite in the second process alone.
    stage = LineStage()
    stage.on_loss = lambda loss, step: loss * (math.inf if rank and step == 3 else 1)
    trainer = line_trainer(accelerator, folder / "gradient", stage, log_every=STEPS + 1)
    trainer.run()
    keep("gradient", trainer)

    # A loss that is NaN there from its third step.
    endings: dict[str, dict[str, Any]] = {"stop": {"on_nan": "stop"}, "skip": {"max_skips": 1}}
    for name, changes in endings.items():
        stage = LineStage()
        stage.on_loss = lambda loss, step: loss * (math.nan if rank and step >= 3 else 1)
        trainer = line_trainer(accelerator, folder / f"loss-{name}", stage, **changes)
        try:
            trainer.run()
        except BootPIGError as error:
            said[f"loss {name}"] = [type(error).__name__, trainer.step, str(error)]

    # Only the second process is asked to stop.
    stage = LineStage()
    trainer = line_trainer(accelerator, folder / "stopped", stage)

    def ask(loss: Tensor, step: int) -> Tensor:
        if rank and step == 3:
            trainer.ask_to_stop()
        return loss

    stage.on_loss = ask
    said["stopped"] = [trainer.run(), trainer.step]

    # The first process cannot write: its folder would be below a file.
    trainer = line_trainer(accelerator, folder / "full", checkpoint_every=1, keep_checkpoints=9)

    def fail(indices: Tensor, draws: Draws, loss: Any = trainer.stage.loss) -> Any:
        if trainer.step == 2 and not rank:
            trainer.checkpoints.wait()
            trainer.checkpoints.folder = folder / "full" / "log.jsonl" / "no folder"
        return loss(indices, draws)

    trainer.stage.loss = fail  # type: ignore[method-assign]
    try:
        trainer.run()
    except BootPIGError as error:
        said["full"] = [type(error).__name__, str(error)]

    if not trainer.together.is_sharded:
        said["buckets"] = watch_buckets(accelerator, folder)
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))


def watch_buckets(accelerator: Accelerator, folder: Path) -> list[str]:
    """The order in which gradients are made and buckets of them sent, in the last step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    trainer = line_trainer(accelerator, folder / "wide", WideStage(), steps=2)
    events: list[str] = []

    def send(state: Any, bucket: Any) -> Any:
        events.append("bucket")
        return allreduce_hook(state, bucket)

    send.__annotations__.clear()  # torch wants types themselves there, or nothing
    body: Any = trainer.together.body
    body.register_comm_hook(None, send)
    for parameter in trainer.parameters.values():
        parameter.register_post_accumulate_grad_hook(lambda _: events.append("gradient"))
    trainer.run()
    return events[len(events) // 2 :]


def begin(accelerator: Accelerator, folder: Path) -> None:
    """Half of a run, for others to go on with."""
    stop_after(line_trainer(accelerator, folder / "from-one", batch_size=4), 2).run()


def end_badly(accelerator: Accelerator, folder: Path) -> None:
    """The second process ends without a word in its third step."""
    stage = LineStage()
    trainer = line_trainer(accelerator, folder / "lost", stage, checkpoint_every=1)

    def leave(loss: Tensor, step: int) -> Tensor:
        if accelerator.process_index and step == 3:
            trainer.checkpoints.wait()
            os._exit(9)
        return loss

    stage.on_loss = leave
    try:
        trainer.run()
    except BootPIGError as error:
        (folder / "lost.json").write_text(json.dumps([type(error).__name__, str(error)]))
        os._exit(3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = {"one": begin, "all": train_all, "lost": end_badly}[sys.argv[2]]
    what(Accelerator(cpu=True), Path(sys.argv[1]))
