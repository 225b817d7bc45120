"""The loop that every stage shares: optimise, average, log, validate, checkpoint, resume.

All randomness of a step comes from a generator seeded with (seed, step, process), and the samples of
a step are a function of the step. Nothing about randomness has to be stored, so a resumed run is
bit-identical to one that was never interrupted, and validation cannot disturb training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bootpig_rt.errors import CheckpointError, NumericalError
from bootpig_rt.training.config import TrainConfig

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """What a stage adds to the loop."""

    num_samples: int

    def modules(self) -> dict[str, nn.Module]:
        """Modules whose trainable parameters are optimised, averaged and stored."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, each with `params` and its own `lr`."""

    def loss(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the samples `indices` [B], and figures to log."""

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Write pictures on fixed seeds, with averaged weights in place; return figures to log."""

    def export(self, folder: Path) -> None:
        """Write the result, with averaged weights in place, for the next stage or the runtime."""


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """Return the generator of one step of one process."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + step) * 4_099 + process)
    return generator


def step_indices(step: int, batch_size: int, num_samples: int, seed: int) -> Tensor:
    """Return the samples of a step: whole epochs, each in its own random order.

    Args:
        step: Number of the optimiser step, from 0.
        batch_size: Samples of the step, over all processes and accumulation.
        num_samples: Samples of the data set.
        seed: Of the run.

    Returns:
        int64 [batch_size].
    """
    first = step * batch_size
    parts = []
    while len(parts) == 0 or sum(map(len, parts)) < batch_size:
        done = sum(map(len, parts))
        epoch, offset = divmod(first + done, num_samples)
        order = torch.randperm(num_samples, generator=step_generator(seed, epoch, 4_098))
        parts.append(order[offset : offset + batch_size - done])
    return torch.cat(parts)


def learning_rate_share(step: int, steps: int, warmup_steps: int, final_share: float) -> float:
    """Share of the top learning rate at a step: linear warm-up, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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


class Trainer:
    """Runs one stage in one folder.

    Layout: `config.json`, `log.jsonl`, `tensorboard/`, `validation/`, `checkpoints/step-N/`, `result/`.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator) -> None:
        """Prepare optimiser and average; `resume` then loads the newest checkpoint, if any."""
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder = Path(config.output)
        self.modules = stage.modules()
        self.optimizer = torch.optim.AdamW(
            stage.parameter_groups(),
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
        )
        self.top_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.ema = Ema(self.parameters, config.optimizer.ema_decay)
        self._stop = False

    def run(self, *, max_minutes: float | None = None) -> bool:
        """Train until the last step, or until time is up or a signal asks to stop.

        Returns:
            Whether the stage is finished; if not, the same command goes on from here.

        Raises:
            NumericalError: The loss is NaN or infinite; the last checkpoint is kept.
        """
        config, is_main = self.config, self.accelerator.is_main_process
        self._resume()
        if self.step >= config.steps and (self.folder / "result").exists():
            return True
        started, deadline = time.monotonic(), None
        if max_minutes is not None:
            deadline = started + 60 * max_minutes
        first = self.step
        writer = SummaryWriter(str(self.folder / "tensorboard")) if is_main else None
        bar = tqdm(total=config.steps, initial=first, unit="step", disable=None if is_main else True)
        sums: dict[str, Tensor] = {}
        with self._stop_on_signals(), bar:
            while self.step < config.steps and not self._must_stop(deadline):
                figures = self._train_step()
                for name, value in figures.items():
                    sums[name] = sums.get(name, torch.zeros(())) + value
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0:
                    means = {k: float(v) / config.log_every for k, v in sums.items()}
                    self._check_finite(means)
                    rate = (self.step - first) * config.batch_size * config.accumulate
                    means["samples_per_s"] = rate / (time.monotonic() - started)
                    means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    self._log(writer, means)
                    sums = {}
                if config.validate_every and self.step % config.validate_every == 0:
                    self._validate(writer)
                if self.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
        if writer is not None:
            writer.close()
        if self.step % config.checkpoint_every:
            self.save_checkpoint()
        if self.step < config.steps:
            return False
        self._export()
        return True

    def _train_step(self) -> dict[str, Tensor]:
        config, accelerator = self.config, self.accelerator
        processes, process = accelerator.num_processes, accelerator.process_index
        total = config.batch_size * config.accumulate * processes
        indices = step_indices(self.step, total, self.stage.num_samples, config.seed)
        mine = indices[process::processes]
        generator = step_generator(config.seed, self.step, process)
        settings = config.optimizer
        share = learning_rate_share(
            self.step,
            config.steps,
            settings.warmup_steps,
            settings.final_learning_rate / settings.learning_rate,
        )
        for group, top in zip(self.optimizer.param_groups, self.top_rates, strict=True):
            group["lr"] = top * share
        figures: dict[str, Tensor] = {}
        for chunk in mine.chunk(config.accumulate):
            with accelerator.autocast():
                loss, extra = self.stage.loss(chunk, generator)
            accelerator.backward(loss / config.accumulate)
            for name, value in {"loss": loss, **extra}.items():
                part = value.detach().float().cpu() / config.accumulate
                figures[name] = figures.get(name, torch.zeros(())) + part
        self._average_gradients()
        # The scaler of float16 must undo its scale before the norm is measured.
        accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip_norm)
        figures["gradient_norm"] = norm.detach().float().cpu()
        # A step with a gradient that is not finite would spoil every weight: it is left out, and logged.
        if torch.isfinite(norm):
            self._optimizer_step()
        figures["skipped"] = (~torch.isfinite(norm)).float().cpu()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        return figures

    def _optimizer_step(self) -> None:
        scaler = self.accelerator.scaler
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def _check_finite(self, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise NumericalError(
                f"the loss is {figures['loss']} at step {self.step}; the last checkpoint is kept in "
                f"{self.folder / 'checkpoints'}: lower optimizer.learning_rate or use mixed_precision=no, "
                "then run the same command again"
            )

    def _log(self, writer: SummaryWriter | None, figures: dict[str, float]) -> None:
        if writer is None:
            return
        with (self.folder / "log.jsonl").open("a") as file:
            rounded = {k: float(f"{v:.6g}") for k, v in figures.items()}
            file.write(json.dumps({"step": self.step, **rounded}) + "\n")
        for name, value in figures.items():
            writer.add_scalar(name, value, self.step)

    def _validate(self, writer: SummaryWriter | None) -> None:
        if self.accelerator.is_main_process:
            with self._averaged():
                folder = self.folder / "validation"
                folder.mkdir(exist_ok=True)
                figures = self.stage.validate(folder, self.step)
            self._log(writer, {f"validation/{k}": v for k, v in figures.items()})
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        if self.accelerator.is_main_process:
            with self._averaged():
                temporary = self.folder / ".result.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                self.stage.export(temporary)
                shutil.rmtree(self.folder / "result", ignore_errors=True)
                os.replace(temporary, self.folder / "result")
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> _Swapped:
        return _Swapped(self.ema, list(self.modules.values()))

    # Checkpoints --------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write weights, average and optimiser state; the folder appears whole or not at all."""
        if self.accelerator.is_main_process:
            folder = self.folder / "checkpoints"
            temporary, final = folder / ".tmp", folder / f"step-{self.step:07d}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tensors = {f"weight/{k}": p.detach().cpu().contiguous() for k, p in self.parameters.items()}
            tensors |= {f"average/{k}": v.cpu().contiguous() for k, v in self.ema.average.items()}
            for name, parameter in self.parameters.items():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().contiguous()
            save_file(tensors, temporary / "state.safetensors")
            scaler = self.accelerator.scaler
            state = {"step": self.step, "scaler": scaler.state_dict() if scaler else None}
            (temporary / "state.json").write_text(json.dumps(state))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in self._checkpoints()[: -self.config.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def _resume(self) -> None:
        """Load the newest checkpoint of the folder; refuse one of another configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        now = json.loads(json.dumps(asdict(self.config)))
        checkpoints = self._checkpoints()
        if checkpoints:
            before = json.loads(path.read_text())
            changed = sorted(k for k in now if now[k] != before.get(k))
            if changed:
                raise CheckpointError(
                    f"{self.folder} holds a run with other {', '.join(changed)}; "
                    "use its settings to go on, or another output folder to start anew"
                )
        elif self.accelerator.is_main_process:
            path.write_text(json.dumps(now, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        if not checkpoints:
            return
        tensors = load_file(checkpoints[-1] / "state.safetensors")
        state = json.loads((checkpoints[-1] / "state.json").read_text())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.ema.average[name].copy_(tensors[f"average/{name}"])
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer/{k}/{name}" in tensors]
                for key in keys:
                    value = tensors[f"optimizer/{key}/{name}"]
                    device = "cpu" if key == "step" else parameter.device
                    self.optimizer.state[parameter][key] = value.to(device)
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._cut_log()
        logger.info("going on from step %d of %s", self.step, checkpoints[-1])

    def _cut_log(self) -> None:
        """Drop log lines of steps after the checkpoint: they will be written again."""
        path = self.folder / "log.jsonl"
        if not path.exists() or not self.accelerator.is_main_process:
            return
        lines = [x for x in path.read_text().splitlines() if json.loads(x)["step"] <= self.step]
        path.write_text("".join(f"{line}\n" for line in lines))

    # Stopping -----------------------------------------------------------------------------------

    def _must_stop(self, deadline: float | None) -> bool:
        stop = self._stop or (deadline is not None and time.monotonic() >= deadline)
        if self.accelerator.num_processes > 1:
            # All processes must leave at the same step.
            stop = bool(broadcast_object_list([stop])[0])
        return stop

    def _stop_on_signals(self) -> _SignalGuard:
        return _SignalGuard(self)

    def ask_to_stop(self) -> None:
        """Finish the current step, write a checkpoint and return from `run`."""
        self._stop = True


class _SignalGuard:
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(
                    number, lambda *_: self.trainer.ask_to_stop()
                )
            except ValueError:  # not the main thread: the caller handles signals
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class _Swapped:
    """The averaged weights and evaluation mode, for the time of a `with` block."""

    def __init__(self, ema: Ema, modules: list[nn.Module]) -> None:
        self.ema, self.modules = ema, modules

    def __enter__(self) -> None:
        self.ema.swap()
        for module in self.modules:
            module.eval()

    def __exit__(self, *_: object) -> None:
        self.ema.swap()
        for module in self.modules:
            module.train()


def log_rows(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a run's `log.jsonl`."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
