"""The loop that every stage shares: optimise, average, log, validate, checkpoint, resume.

The samples of a step and all random numbers are functions of the step, so a resumed run is
bit-identical to one that was never interrupted, and validation cannot disturb training. Several
processes average their gradients; whatever else decides how a step goes on (is its norm finite, is
the loss, shall we stop) is agreed on by all of them, once a step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from bootpig_rt.errors import CheckpointError, ConfigError, StorageError
from bootpig_rt.training.agreement import Agreement, Here, Skips, agree
from bootpig_rt.training.checkpoints import Checkpoints, TrainingState
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.cpu_attention import by_products
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.ema import Ema, averaged
from bootpig_rt.training.optimizers import build_optimizer, learning_rate_share
from bootpig_rt.training.parts import Parts
from bootpig_rt.training.pictures import save_sheet
from bootpig_rt.training.processes import Body, Sharding, Together, naming_lost_processes
from bootpig_rt.training.resume import check_config, write_config
from bootpig_rt.training.stage import Stage, Validation
from bootpig_rt.training.stopping import listening
from bootpig_rt.training.trackers import Log
from bootpig_rt.training.units import compile_blocks, make_units

logger = logging.getLogger(__name__)

WriteResult = Callable[[Any, Path], None]
"""Writes what `Stage.result` returned into a folder that does not exist yet."""


class Trainer:
    """Runs one stage in one folder.

    Layout of the folder: `config.json`, `log.jsonl`, what the trackers write, `validation/`,
    `checkpoints/step-N/`, `so-far/` with `export_every`, and at the end `result/`.

    Attributes:
        step: So many are done.
        shall_requeue: The run was stopped by a signal with which schedulers announce the end.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        accelerator: Accelerator,
        write_result: WriteResult,
        sharding: Sharding | None = None,
    ) -> None:
        """Prepare optimiser and average; `run` then loads the newest checkpoint, if any."""
        if sharding is not None and config.export_every:
            raise ConfigError(
                "export_every does not go together with FSDP, whose shards are joined at the end "
                "alone: take it out, checkpoints are written all the same"
            )
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder, self._write_result = Path(config.output), write_result
        self._parts = Parts(
            config,
            stage.order,
            process=accelerator.process_index,
            processes=int(accelerator.num_processes),
        )
        self.modules = stage.modules()
        for module in self.modules.values():
            # Loaded models are in evaluation mode, whose gradients differ in their last bit.
            module.train()
            if config.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerator.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = config.tf32
        if config.compile and not config.samples.resident:  # that is compiled whole, by the stage
            logger.info("compiling %d blocks", compile_blocks(self.modules.values()))
        units = nn.ModuleList()
        if sharding is not None or config.checkpointing != "none":
            units = make_units(stage.walks(), checkpointing=config.checkpointing)
        # Sharding replaces the parameters: optimiser and average are made of those that are then.
        self.together = Together(accelerator, Body(self.modules), units, sharding)
        self.optimizer = build_optimizer(
            stage.parameter_groups(), config.optimizer, self.modules.values()
        )
        self.top_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.ema = Ema(self.parameters, config.optimizer.ema_decay, config.optimizer.ema_device)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            config.keep_checkpoints,
            group=self.together.host_group(config.timeout_minutes),
            is_main=accelerator.is_main_process,
        )
        self._asked_by: signal.Signals | None = None
        self._is_asked = self._stop = self.shall_requeue = False
        self._skips = Skips(
            config.on_nan,
            config.max_skips,
            self.checkpoints.folder,
            is_scaled=accelerator.scaler is not None,
        )

    def run(self, *, max_minutes: float | None = None) -> bool:
        """Train until the last step, or until time is up or a signal asks to stop.

        Returns:
            Whether the stage is finished; if not, the same command goes on from here.

        Raises:
            CheckpointError: The folder holds a run with other settings or steps of another size,
                or a damaged checkpoint.
            NumericalError: A loss or a gradient is not finite in a process, and `on_nan` says to
                stop or too many steps were left out; the last checkpoint is kept.
            ProcessLost: Another process is gone; the last checkpoint is kept.
            StorageError: A checkpoint cannot be written; the one before it is kept.
        """
        with naming_lost_processes(int(self.accelerator.num_processes), self.checkpoints.folder):
            try:
                self._resume()
                if self.step >= self.config.steps and (self.folder / "result").exists():
                    return True
                self._train(None if max_minutes is None else time.monotonic() + 60 * max_minutes)
                self._settle_checkpoint()
            finally:
                self.checkpoints.wait()
            if self.step < self.config.steps:
                return False
            self._export("result")
        return True

    def _train(self, deadline: float | None) -> None:
        config, is_main, first = self.config, self.accelerator.is_main_process, self.step
        log = Log(config, step=first) if is_main else None
        bar = tqdm(
            total=config.steps, initial=first, unit="step", disable=None if is_main else True
        )
        sums: dict[str, Tensor] = {}
        num_summed = num_skipped = 0  # since the row before, or since a resume between two rows
        started = time.monotonic()
        closing = contextlib.closing(log) if log else contextlib.nullcontext()
        with listening(self._hear), bar, closing:
            self._agree(torch.zeros(()), torch.zeros(()), deadline)
            while self.step < config.steps and not self._stop:
                figures = self._train_step(deadline)
                num_skipped += not figures
                num_summed += bool(figures)
                for name, value in figures.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0:
                    means = self._means(sums, num_summed)
                    means["skipped"] = num_skipped / (num_summed + num_skipped)
                    seen = (self.step - first) * self._parts.samples_per_step
                    means["samples_per_s"] = seen / (time.monotonic() - started)
                    means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
                    bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}")
                    if log:
                        log.write(means, self.step)
                    sums, num_summed, num_skipped = {}, 0, 0
                if config.validate_every and self.step % config.validate_every == 0:
                    self._validate(log)
                if self.step % config.checkpoint_every == 0:
                    self._save_checkpoint()
                if config.export_every and self.step % config.export_every == 0:
                    self._export("so-far")
        if self.step % config.checkpoint_every and self.step > first:
            self._save_checkpoint()

    def _train_step(self, deadline: float | None) -> dict[str, Tensor]:
        """One step; returns its figures, none if it was left out."""
        config, accelerator = self.config, self.accelerator
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
        spoilt = torch.zeros((), device=accelerator.device)
        parts = self._parts.of_step(self.step)
        for number, (indices, draws) in enumerate(parts, start=1):
            self.stage.expect(chain(parts[number - 1 :], self._parts.after(self.step)))
            # Backward too, where blocks are computed anew.
            with by_products(accelerator.device):
                loss, extra = self.together.call(
                    partial(self._loss, indices, draws), is_averaged=number == len(parts)
                )
                accelerator.backward(loss / len(parts))
            spoilt = torch.maximum(spoilt, (~torch.isfinite(loss.detach())).float())
            for name, value in {"loss": loss, **extra}.items():
                share_of_step = value.detach().float() / len(parts)
                figures[name] = figures[name] + share_of_step if name in figures else share_of_step
        # The scaler of float16 must undo its scale before the norm is measured.
        accelerator.unscale_gradients(self.optimizer)
        norm = self.together.clip(list(self.parameters.values()), settings.clip_norm)
        agreed = self._agree(norm, spoilt, deadline)
        if agreed.spoilt and spoilt:
            samples = [sample for part, _ in parts for sample in part.tolist()]
            logger.warning("step %d has a loss that is not finite in %s", self.step + 1, samples)
        # The same in all processes, so all of them leave the step out.
        self._skips.count(agreed, step=self.step + 1, processes=int(accelerator.num_processes))
        self._optimizer_step(is_finite=agreed.is_finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        figures["gradient_norm"] = norm
        return figures if agreed.is_finite else {}

    def _loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        with self.accelerator.autocast():
            loss, figures = self.stage.loss(indices, draws)
        return loss, {name: value.detach() for name, value in figures.items()}

    def _optimizer_step(self, *, is_finite: bool) -> None:
        scaler = self.accelerator.scaler
        if is_finite and scaler is None:
            self.optimizer.step()
        elif is_finite:
            scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()  # after a step left out too: that is how the scale of float16 falls

    def _agree(self, norm: Tensor, spoilt: Tensor, deadline: float | None) -> Agreement:
        is_late = deadline is not None and time.monotonic() >= deadline
        by_scheduler = self._asked_by in (signal.SIGTERM, signal.SIGUSR1)
        is_asked = self._is_asked or is_late
        here = Here(norm, spoilt, is_asked, by_scheduler, self.checkpoints.has_failed)
        agreed = agree(self.together, here)
        self._stop = bool(agreed.stop or agreed.failed)
        self.shall_requeue = bool(agreed.requeue)
        return agreed

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        """Means over steps and processes, the same in all of them."""
        if not count:
            return {}
        found = torch.stack([value.to(self.accelerator.device) for value in sums.values()])
        found = self.together.sum(found / count) / self.accelerator.num_processes
        return dict(zip(sums, found.tolist(), strict=True))

    # Validation and result ------------------------------------------------------------------------

    def _validate(self, log: Log | None) -> None:
        found = Validation()
        # Shards are gathered by all processes together; of whole copies one is enough.
        if self.together.is_sharded or log:
            with averaged(self.ema, self.modules.values()):
                found = self.together.look(self.stage.validate)
        if log:
            if found.rows:
                folder = self.folder / "validation"
                folder.mkdir(exist_ok=True)
                save_sheet(found.rows, folder / f"step-{self.step:07d}.png")
            if found.figures:
                figures = {f"validation/{name}": value for name, value in found.figures.items()}
                log.write(figures, self.step)
        self.together.wait()

    def _export(self, name: str) -> None:
        with averaged(self.ema, self.modules.values()):
            self.together.make_whole()
            if self.accelerator.is_main_process:
                temporary = self.folder / ".result.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                self._write_result(self.stage.result(), temporary)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                os.replace(temporary, self.folder / name)
        self.together.wait()

    # Checkpoints ----------------------------------------------------------------------------------

    def _state(self) -> TrainingState:
        return TrainingState(
            self.parameters,
            self.ema,
            self.optimizer,
            self.accelerator.scaler,
            self._parts.samples_per_step,
            int(self.accelerator.num_processes),
        )

    def _save_checkpoint(self) -> None:
        self._settle_checkpoint()  # one at a time
        if self.together.is_sharded or self.accelerator.is_main_process:
            self.checkpoints.start(self._state(), self.step)

    def _settle_checkpoint(self) -> None:
        """Wait for the checkpoint under way; if it failed anywhere, end everywhere."""
        error = self.checkpoints.wait()
        failed = torch.tensor(float(error is not None), device=self.accelerator.device)
        if self.together.sum(failed) > 0:
            raise error or StorageError(
                f"another process cannot write a checkpoint to {self.checkpoints.folder} and says "
                "why; older checkpoints are kept, run the same command again to go on"
            )

    def _resume(self) -> None:
        """Load the newest checkpoint of the folder; refuse one of another configuration."""
        found = self.checkpoints.all()
        if found:
            check_config(self.config, self.folder)
        self.together.wait()
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
        if found:
            self.step = self._state().read(found[-1])
            logger.info("going on from step %d of %s", self.step, found[-1])
        if self.step > self.config.steps:
            raise CheckpointError(
                f"{found[-1]} is further than steps {self.config.steps}: give more steps, or "
                "another output folder"
            )
        if self.accelerator.is_main_process:
            write_config(self.config, self.folder)

    # Stopping -------------------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Finish the current step, write a checkpoint and return from `run`."""
        self._is_asked = True

    def _hear(self, number: signal.Signals) -> None:
        self._asked_by = number
        self.ask_to_stop()
