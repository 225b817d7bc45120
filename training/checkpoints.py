"""The state of a training on disk, as safetensors; written while training goes on.

Knows parameters by name, the optimiser's state, and a folder of checkpoints; knows nothing about
stages or how steps are made. A state that is sharded is written by all processes through
`torch.distributed.checkpoint`, and may be read by any number of them, sharded or not.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from bootpig_rt.errors import CheckpointError, StorageError, describe_os_error
from bootpig_rt.training.ema import Ema

FILE = "state.safetensors"
# Of torch, and of bitsandbytes.
_OPTIMIZER_KEYS = (
    *("step", "exp_avg", "exp_avg_sq"),
    *("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"),
)


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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, not copies, by name."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"weight/{name}"] = parameter.detach()
            found[f"average/{name}"] = self.ema.average[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                one = value.reshape(1) if isinstance(value, Tensor) and not value.dim() else value
                # bitsandbytes counts its steps in plain integers.
                one = torch.tensor([one]) if isinstance(one, int) else one
                found[f"optimizer/{key}/{name}"] = one.detach()
        return found

    def about(self, step: int) -> dict[str, Any]:
        """What goes into `state.json`."""
        return {
            "step": step,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "samples_per_step": self.samples_per_step,
            "processes": self.processes,
        }

    def read(self, folder: Path) -> int:
        """Load a checkpoint in place, and return the number of its step.

        With shards, all processes must call it.

        Raises:
            CheckpointError: A file is missing or damaged, or of another model or size of steps.
        """
        try:
            about = json.loads((folder / "state.json").read_text())
            _check_files(folder, about.get("files", {FILE: None}))
            reader = HuggingFaceStorageReader(str(folder))
            saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
            self._check(folder, about, {name: tuple(each.size) for name, each in saved.items()})
            targets = self._targets(saved)
            _load(targets, folder)
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged ({_one_line(error)}); delete it to go on from "
                "the one before it",
                folder,
            ) from error
        for name, parameter in self.parameters.items():
            for key in _keys_of(name, targets):
                value = targets[f"optimizer/{key}/{name}"]
                if key == "step":  # a plain integer for bitsandbytes, else a tensor without size
                    counts = value.dtype == torch.int64
                    self.optimizer.state[parameter][key] = int(value) if counts else value[0]
                else:
                    self.optimizer.state[parameter][key] = value
        if about["scaler"] and self.scaler:
            self.scaler.load_state_dict(about["scaler"])
        return int(about["step"])

    def _check(self, folder: Path, about: dict[str, Any], shapes: dict[str, Any]) -> None:
        if about["samples_per_step"] != self.samples_per_step:
            raise CheckpointError(
                f"the checkpoint {folder} is of steps of {about['samples_per_step']} samples in "
                f"{about['processes']} processes, this run has steps of {self.samples_per_step} in "
                f"{self.processes}; start as many processes, or choose batch_size and accumulate "
                "so that batch_size * accumulate * processes is the same",
                folder,
            )
        for name, parameter in self.parameters.items():
            for key in (f"weight/{name}", f"average/{name}"):
                if shapes.get(key) != tuple(parameter.shape):
                    raise CheckpointError(
                        f"the checkpoint {folder} has no {key} of shape {list(parameter.shape)}: "
                        "it is of another model; use another output folder to start anew",
                        folder,
                    )

    def _targets(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """What is loaded into: weights and averages themselves, and new tensors for the rest."""
        targets: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            targets[f"weight/{name}"] = parameter.detach()
            targets[f"average/{name}"] = self.ema.average[name]
            for key in _keys_of(name, saved):
                full = f"optimizer/{key}/{name}"
                size, dtype = saved[full].size, saved[full].properties.dtype
                if key == "step":
                    targets[full] = torch.zeros(1, dtype=dtype, device=parameter.device)
                elif tuple(size) == tuple(parameter.shape):  # laid out and sharded as the weight
                    targets[full] = torch.zeros_like(parameter.detach(), dtype=dtype)
                else:
                    targets[full] = torch.zeros(size, dtype=dtype, device=parameter.device)
        return targets


def _keys_of(name: str, named: dict[str, Any]) -> list[str]:
    """What the optimiser keeps of a parameter; nothing of one that never had a gradient."""
    return [key for key in _OPTIMIZER_KEYS if f"optimizer/{key}/{name}" in named]


def _check_files(folder: Path, files: dict[str, int | None]) -> None:
    for name, size in files.items():
        found = (folder / name).stat().st_size
        if size is not None and size != found:
            raise ValueError(f"{name} has {found} bytes, expected {size}")


def _load(targets: dict[str, Tensor], folder: Path) -> None:
    is_sharded = any(isinstance(target, DTensor) for target in targets.values())
    if not is_sharded and (folder / FILE).exists():
        loaded = load_file(folder / FILE)
        for name, target in targets.items():
            target.copy_(loaded[name].reshape(target.shape))
        return
    with warnings.catch_warnings():
        # It warns of being alone, which is meant.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load_shards(
            dict(targets),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=not is_sharded,
        )


class Checkpoints:
    """A folder of checkpoints, `step-N/` each; one appears whole or not at all.

    One at a time is written, by a thread, from a copy on the host: training goes on at once.

    Args:
        folder: Made with the first of them.
        keep: So many of the newest stay.
        group: Of all processes, for shards, on the CPU; None: this process alone writes.
        is_main: It moves a finished checkpoint to its place.
    """

    def __init__(
        self, folder: Path, keep: int, *, group: ProcessGroup | None = None, is_main: bool = True
    ) -> None:
        self.folder, self.keep = folder, keep
        self._group, self._is_main = group, is_main
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        pins = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=pins,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=pins,
            )
        )

    def all(self) -> list[Path]:
        """Those that are there, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def start(self, state: TrainingState, step: int) -> None:
        """Copy a state and write it while its owner goes on; the one before must have ended."""
        copy: Any = self._stager.stage(state.tensors())
        self._under_way = self._writer.submit(self._write, copy, state.about(step), step)

    @property
    def has_failed(self) -> bool:
        """What was started has ended, and not well; does not wait."""
        under_way = self._under_way
        return under_way is not None and under_way.done() and under_way.exception() is not None

    def wait(self) -> StorageError | None:
        """Until what was started has ended; return why it could not be written."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return None
        try:
            under_way.result()
        except StorageError as error:
            return error
        return None

    def _write(self, tensors: dict[str, Tensor], about: dict[str, Any], step: int) -> None:
        temporary, final = self.folder / ".tmp", self.folder / f"step-{step:07d}"
        try:
            if self._group is None:
                _make_anew(temporary)
                save_file(_own_memory(tensors), temporary / FILE)
                self._finish(temporary, final, about)
            else:
                self._write_shard(tensors, temporary, final, about, self._group)
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            if self._is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(
                f"cannot write the checkpoint {final}: {_one_line(error)}; older checkpoints are "
                "kept, run the same command again to go on from the last one"
            ) from error

    def _write_shard(
        self,
        tensors: dict[str, Tensor],
        temporary: Path,
        final: Path,
        about: dict[str, Any],
        group: ProcessGroup,
    ) -> None:
        """All processes take these steps together, also when one of them fails."""
        with _agreeing(group):
            if self._is_main:
                _make_anew(temporary)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save_shards(tensors, storage_writer=writer, process_group=group)
        with _agreeing(group):
            if self._is_main:
                self._finish(temporary, final, about)

    def _finish(self, temporary: Path, final: Path, about: dict[str, Any]) -> None:
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(json.dumps(about | {"files": files}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)


@contextmanager
def _agreeing(group: ProcessGroup) -> Iterator[None]:
    """A failure in one process is one in all."""
    error: OSError | None = None
    try:
        yield
    except OSError as found:
        error = found
    failed = torch.tensor(float(error is not None))
    torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX, group=group)
    if error is not None:
        raise error
    if failed:
        raise OSError("another process could not write it")


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: each in one piece and in memory of its own."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found[name] = tensor.contiguous()
        if tensor.data_ptr() in seen:
            found[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return found


def _one_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        # Of several processes, the first that failed says why.
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError):
        return describe_os_error(error)
    return " ".join(str(error).split()) or type(error).__name__
