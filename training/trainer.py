"""The loop that every stage shares: optimise, average, log, validate, checkpoint, resume.

All randomness of a step comes from a generator seeded with (seed, step, process), and the samples
of a step are a function of the step. Nothing about randomness has to be stored, so a resumed run
is bit-identical to one that was never interrupted, and validation cannot disturb training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bootpig_rt.errors import CheckpointError, NumericalError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.state import Averaged, Ema, TrainingState

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
    parts: list[Tensor] = []
    done = 0
    while done < batch_size:
        epoch, offset = divmod(first + done, num_samples)
        order = torch.randperm(num_samples, generator=step_generator(seed, epoch, 4_098))
        parts.append(order[offset : offset + batch_size - done])
        done += len(parts[-1])
    return torch.cat(parts)


def learning_rate_share(step: int, steps: int, warmup_steps: int, final_share: float) -> float:
    """Share of the top learning rate at a step: linear warm-up, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """Runs one stage in one folder.

    Layout of the folder: `config.json`, `log.jsonl`, `tensorboard/`, `validation/`,
    `checkpoints/step-N/`, and at the end `result/`.
    """

    def __init__(self, config: TrainConfig, stage: Stage, accelerator: Accelerator) -> None:
        """Prepare optimiser and average; `resume` then loads the newest checkpoint, if any."""
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder = Path(config.output)
        self.modules = stage.modules()
        for module in self.modules.values():
            # Loaded models are in evaluation mode, whose gradients differ in their last bit.
            module.train()
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
            CheckpointError: The folder holds a run with other settings, or a damaged checkpoint.
            NumericalError: The loss is NaN or infinite; the last checkpoint is kept.
            StorageError: A checkpoint cannot be written; the one before it is kept.
        """
        config, is_main = self.config, self.accelerator.is_main_process
        self._resume()
        if self.step >= config.steps and (self.folder / "result").exists():
            return True
        started, deadline = time.monotonic(), None
        if max_minutes is not None:
            deadline = started + 60 * max_minutes
        first = self.step
        writer = None
        if is_main:
            # Steps after the checkpoint are written again.
            writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first + 1)
        disable = None if is_main else True
        bar = tqdm(total=config.steps, initial=first, unit="step", disable=disable)
        sums: dict[str, Tensor] = {}
        num_summed = 0  # below log_every in the first row after a resume between two rows
        closing = contextlib.closing(writer) if writer else contextlib.nullcontext()
        with self._stop_on_signals(), bar, closing:
            while self.step < config.steps and not self._must_stop(deadline):
                figures = self._train_step()
                for name, value in figures.items():
                    sums[name] = sums.get(name, torch.zeros(())) + value
                num_summed += 1
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0:
                    means = {k: float(v) / num_summed for k, v in sums.items()}
                    self._check_finite(means)
                    seen = (self.step - first) * self._samples_per_step
                    means["samples_per_s"] = seen / (time.monotonic() - started)
                    means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    self._log(writer, means)
                    sums, num_summed = {}, 0
                if config.validate_every and self.step % config.validate_every == 0:
                    self._validate(writer)
                if self.step % config.checkpoint_every == 0:
                    self.save_checkpoint()
        if self.step % config.checkpoint_every and self.step > first:
            self.save_checkpoint()
        if self.step < config.steps:
            return False
        self._export()
        return True

    @property
    def _samples_per_step(self) -> int:
        config = self.config
        return config.batch_size * config.accumulate * int(self.accelerator.num_processes)

    def _train_step(self) -> dict[str, Tensor]:
        config, accelerator = self.config, self.accelerator
        processes, process = accelerator.num_processes, accelerator.process_index
        indices = step_indices(
            self.step, self._samples_per_step, self.stage.num_samples, config.seed
        )
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
        # A gradient that is not finite would spoil every weight: the step is left out, and logged.
        self._optimizer_step(is_finite=bool(torch.isfinite(norm)))
        figures["skipped"] = (~torch.isfinite(norm)).float().cpu()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        return figures

    def _optimizer_step(self, *, is_finite: bool) -> None:
        scaler = self.accelerator.scaler
        if is_finite and scaler is None:
            self.optimizer.step()
        elif is_finite:
            scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()  # after a step left out too: that is how the scale of float16 falls

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
                f"the loss is {figures['loss']} at step {self.step}, expected a finite number; the "
                f"last checkpoint is kept in {self.folder / 'checkpoints'}; start anew in another "
                "output folder with a lower optimizer.learning_rate or with mixed_precision=no"
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

    def _averaged(self) -> Averaged:
        return Averaged(self.ema, list(self.modules.values()))

    def _state(self) -> TrainingState:
        return TrainingState(self.parameters, self.ema, self.optimizer, self.accelerator.scaler)

    # Checkpoints --------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write weights, average and optimiser state; the folder appears whole or not at all.

        Raises:
            StorageError: The disk is full or refuses; older checkpoints are kept.
        """
        if self.accelerator.is_main_process:
            folder = self.folder / "checkpoints"
            temporary, final = folder / ".tmp", folder / f"step-{self.step:07d}"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir(parents=True)
                self._state().write(temporary, self.step)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
                raise StorageError(
                    f"cannot write the checkpoint {final}: {reason}; older checkpoints are kept, "
                    "run the same command again to go on from the last one"
                ) from error
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
            try:
                before = {**_later_options(), **json.loads(path.read_text())}
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.folder} has checkpoints but no readable config.json ({error}); "
                    "use another output folder to start anew",
                    path,
                ) from error
            changed = sorted(k for k in now if now[k] != before.get(k))
            if changed:
                raise CheckpointError(
                    f"{self.folder} holds a run with other {', '.join(changed)}; "
                    "use its settings to go on, or another output folder to start anew",
                    path,
                )
        elif self.accelerator.is_main_process:
            path.write_text(json.dumps(now, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        if checkpoints:
            self.step = self._state().read(checkpoints[-1])
            logger.info("going on from step %d of %s", self.step, checkpoints[-1])
        self._cut_log()

    def _cut_log(self) -> None:
        """Drop log lines of steps after the checkpoint: they will be written again."""
        path = self.folder / "log.jsonl"
        if not path.exists() or not self.accelerator.is_main_process:
            return
        # A process that was killed while it wrote leaves a line without its end.
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        kept = [line for line in whole if json.loads(line)["step"] <= self.step]
        atomic_write_text(path, "".join(kept))

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


def _later_options() -> dict[str, Any]:
    """Groups of options with their defaults, which runs had that began before there were any."""
    return {
        each.name: json.loads(json.dumps(asdict(each.default_factory())))
        for each in fields(TrainConfig)
        if each.default_factory is not MISSING
    }


class _SignalGuard:
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, lambda *_: self.trainer.ask_to_stop())
            except ValueError:  # not the main thread: the caller handles signals
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def log_rows(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a run's `log.jsonl`."""
    for line in path.read_text().splitlines():
        yield json.loads(line)
