"""The loop that every stage shares: optimise, average, log, validate, checkpoint, resume.

The samples of a step and all random numbers are functions of the step, so a resumed run is
bit-identical to one that was never interrupted, and validation cannot disturb training. Gradients
of several processes are averaged by torch's DistributedDataParallel; whatever else decides how a
step goes on (is its norm finite, is the loss, shall we stop) is agreed on by all of them.
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
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from bootpig_rt.errors import CheckpointError, NumericalError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.checkpoints import Checkpoints, Ema, TrainingState, averaged
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.pictures import save_sheet
from bootpig_rt.training.stage import Stage

logger = logging.getLogger(__name__)

WriteResult = Callable[[Any, Path], None]
"""Writes what `Stage.result` returned into a folder that does not exist yet."""

# These may change between two runs in one folder: their product is in the checkpoint.
_MAY_CHANGE = ("batch_size", "accumulate")


def learning_rate_share(step: int, steps: int, warmup_steps: int, final_share: float) -> float:
    """Share of the top learning rate at a step: linear warm-up, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Loss(nn.Module):
    """A stage's loss as one module, which is what DistributedDataParallel wraps."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(stage.modules())
        self._stage = stage

    def forward(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = self._stage.loss(indices, draws)
        return loss, {name: value.detach() for name, value in figures.items()}


class Trainer:
    """Runs one stage in one folder.

    Layout of the folder: `config.json`, `log.jsonl`, `tensorboard/`, `validation/`,
    `checkpoints/step-N/`, and at the end `result/`.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        accelerator: Accelerator,
        write_result: WriteResult,
    ) -> None:
        """Prepare optimiser and average; `run` then loads the newest checkpoint, if any."""
        self.config, self.stage, self.accelerator = config, stage, accelerator
        self.folder, self._write_result = Path(config.output), write_result
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.keep_checkpoints)
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
        self._loss: nn.Module = _Loss(stage)
        if accelerator.num_processes > 1:
            # A process whose samples all lack references has no gradient for the Reference U-Net.
            self._loss = DistributedDataParallel(
                self._loss, broadcast_buffers=False, find_unused_parameters=True
            )
        self._stop = False

    def run(self, *, max_minutes: float | None = None) -> bool:
        """Train until the last step, or until time is up or a signal asks to stop.

        Returns:
            Whether the stage is finished; if not, the same command goes on from here.

        Raises:
            CheckpointError: The folder holds a run with other settings or steps of another size,
                or a damaged checkpoint.
            NumericalError: The loss is NaN or infinite in a process; the last checkpoint is kept.
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
        with _stopping_on_signals(self.ask_to_stop), bar, closing:
            while self.step < config.steps and not self._must_stop(deadline):
                figures = self._train_step()
                for name, value in figures.items():
                    sums[name] = sums.get(name, torch.zeros(())) + value
                num_summed += 1
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0:
                    means = self._means(sums, num_summed)
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
                    self._save_checkpoint()
        if self.step % config.checkpoint_every and self.step > first:
            self._save_checkpoint()
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
        parts = self._parts(self.step)
        for number, (indices, draws) in enumerate(parts, start=1):
            following = chain.from_iterable(map(self._parts, range(self.step + 1, config.steps)))
            self.stage.expect(chain(parts[number - 1 :], following))
            with self._averaging(is_last=number == len(parts)):
                with accelerator.autocast():
                    loss, extra = self._loss(indices, draws)
                accelerator.backward(loss / config.accumulate)
            for name, value in {"loss": loss, **extra}.items():
                share_of_step = value.detach().float().cpu() / config.accumulate
                figures[name] = figures.get(name, torch.zeros(())) + share_of_step
        # The scaler of float16 must undo its scale before the norm is measured.
        accelerator.unscale_gradients(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip_norm)
        figures["gradient_norm"] = norm.detach().float().cpu()
        # A gradient that is not finite would spoil every weight: the step is left out, and logged.
        # It is the same average in all processes, so all leave it out.
        self._optimizer_step(is_finite=bool(torch.isfinite(norm)))
        figures["skipped"] = (~torch.isfinite(norm)).float().cpu()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)
        return figures

    def _parts(self, step: int) -> list[tuple[Tensor, Draws]]:
        """This process's samples of a step, in the parts that it takes one after another."""
        seed, accelerator = self.config.seed, self.accelerator
        places = torch.arange(self._samples_per_step)
        indices = self.stage.order.step(step, len(places), seed)
        mine = places[accelerator.process_index :: accelerator.num_processes]
        parts = mine.chunk(self.config.accumulate)
        return [(indices[part], Draws(seed, step, part.tolist())) for part in parts]

    def _averaging(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over processes once a step, in the last part of it."""
        if isinstance(self._loss, DistributedDataParallel) and not is_last:
            return self._loss.no_sync()
        return contextlib.nullcontext()

    def _optimizer_step(self, *, is_finite: bool) -> None:
        scaler = self.accelerator.scaler
        if is_finite and scaler is None:
            self.optimizer.step()
        elif is_finite:
            scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()  # after a step left out too: that is how the scale of float16 falls

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        """Means over steps and processes, the same in all of them: NaN in one is NaN in all."""
        found = torch.stack(list(sums.values())).to(self.accelerator.device) / count
        if self.accelerator.num_processes > 1:
            found = self.accelerator.reduce(found, "mean")
        return dict(zip(sums, found.tolist(), strict=True))

    def _check_finite(self, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise NumericalError(
                f"the loss is {figures['loss']} at step {self.step}, expected a finite number; the "
                f"last checkpoint is kept in {self.checkpoints.folder}; start anew in another "
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
            with averaged(self.ema, self.modules.values()):
                found = self.stage.validate()
            if found.rows:
                folder = self.folder / "validation"
                folder.mkdir(exist_ok=True)
                save_sheet(found.rows, folder / f"step-{self.step:07d}.png")
            self._log(writer, {f"validation/{k}": v for k, v in found.figures.items()})
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        if self.accelerator.is_main_process:
            temporary = self.folder / ".result.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            with averaged(self.ema, self.modules.values()):
                self._write_result(self.stage.result(), temporary)
            shutil.rmtree(self.folder / "result", ignore_errors=True)
            os.replace(temporary, self.folder / "result")
        self.accelerator.wait_for_everyone()

    # Checkpoints --------------------------------------------------------------------------------

    def _state(self) -> TrainingState:
        return TrainingState(
            self.parameters,
            self.ema,
            self.optimizer,
            self.accelerator.scaler,
            self._samples_per_step,
            int(self.accelerator.num_processes),
        )

    def _save_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(self._state(), self.step)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Load the newest checkpoint of the folder; refuse one of another configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        now = self.config.to_dict()
        found = self.checkpoints.all()
        if found:
            try:
                # A run that began before an option existed has its default.
                least = TrainConfig(
                    self.config.stage, self.config.output, start_from=self.config.start_from
                )
                before = {**least.to_dict(), **json.loads(path.read_text())}
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.folder} has checkpoints but no readable config.json ({error}); "
                    "use another output folder to start anew",
                    path,
                ) from error
            changed = sorted(k for k in now if now[k] != before.get(k) and k not in _MAY_CHANGE)
            if changed:
                raise CheckpointError(
                    f"{self.folder} holds a run with other {', '.join(changed)}; "
                    "use its settings to go on, or another output folder to start anew",
                    path,
                )
        elif self.accelerator.is_main_process:
            path.write_text(json.dumps(now, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        if found:
            self.step = self._state().read(found[-1])
            logger.info("going on from step %d of %s", self.step, found[-1])
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
            # Whoever is asked to stop, all leave at the same step.
            asked = torch.tensor(float(stop), device=self.accelerator.device)
            stop = bool(self.accelerator.reduce(asked, "sum") > 0)
        return stop

    def ask_to_stop(self) -> None:
        """Finish the current step, write a checkpoint and return from `run`."""
        self._stop = True


@contextlib.contextmanager
def _stopping_on_signals(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint."""
    previous: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda *_: ask_to_stop())
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
