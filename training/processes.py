"""Several processes that train one model: whole copies (DDP) or shards of one (FSDP2).

What `accelerate launch` was told is read here. Gradients are averaged by torch, bucket by bucket
while the backward pass goes on; what else decides how a step goes on is agreed on by all.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bootpig_rt.errors import ConfigError, ProcessLost
from bootpig_rt.training.config import TrainConfig

T = TypeVar("T")

# Buffers are the same in all processes; later versions of torch have another word for that.
_HAS_NEW_WORD = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_KEEPING_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if _HAS_NEW_WORD else "broadcast_buffers": False
}

# What `accelerate launch` can ask for and this trainer does not do.
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 shards: what of accelerate's plugin has an effect here.

    Attributes:
        reshard_after_forward: Free gathered weights after each operation and gather them again for
            its gradients.
        offload: Where shards wait between their uses.
        mixed_precision: That of the run: weights are gathered in it, gradients summed in float32.
    """

    reshard_after_forward: bool
    offload: OffloadPolicy
    mixed_precision: str


def is_asked_for(variable: str) -> bool:
    """The launcher has set a switch."""
    return os.environ.get(variable, "false").lower() not in ("", "0", "false")


def read_sharding(config: TrainConfig) -> Sharding | None:
    """What the launcher asks for; None for whole copies.

    Raises:
        ConfigError: It is something that this trainer does not do, or does not go together with
            settings of the run.
    """
    for variable, name in _UNSUPPORTED.items():
        if is_asked_for(variable):
            raise ConfigError(
                f"the launcher asks for {name} ({variable}), which this trainer does not do; it "
                "trains in one process or several, with a whole copy each (DDP) or with shards "
                "(FSDP2): take it out of the accelerate config"
            )
    if not is_asked_for("ACCELERATE_USE_FSDP"):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(
            f"the launcher asks for FSDP {version}, this trainer does version 2: say fsdp_version: "
            "2 in the accelerate config, as training/configs/accelerate/fsdp2.yaml does"
        )
    if is_asked_for("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError(
            "the launcher asks for fsdp_activation_checkpointing, which does not see the explicit "
            "walk of the U-Nets: take it out of the accelerate config and say "
            'checkpointing = "blocks" in that of the stage'
        )
    conflicts = {
        "mixed_precision is fp16, take bf16 or no": config.mixed_precision == "fp16",
        f"optimizer.name is {config.optimizer.name}, take adamw": config.optimizer.name != "adamw",
        "optimizer.ema_device is host, take device: it is sharded": (
            config.optimizer.ema_device == "host"
        ),
        "channels_last is true, take false": config.channels_last,
    }
    for conflict, is_there in conflicts.items():
        if is_there:
            raise ConfigError(f"with FSDP {conflict}; or launch with DDP")
    plugin: Any = FullyShardedDataParallelPlugin()
    return Sharding(plugin.reshard_after_forward, plugin.cpu_offload, config.mixed_precision)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Join the other processes; who waits for one that is gone gives up after `timeout_minutes`."""
    timeout = InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout_minutes))
    return Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[timeout])


class Body(nn.Module):
    """The modules of a stage as one, through which all that uses their weights is called."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, function: Callable[[], T]) -> T:
        """Call a function of the stage."""
        return function()


class Together:
    """A stage's modules in this process and the others.

    Args:
        accelerator: Of this process.
        body: The modules.
        units: What is gathered one by one; those that are left, together.
        sharding: None: each process has a whole copy.
    """

    def __init__(
        self, accelerator: Accelerator, body: Body, units: nn.ModuleList, sharding: Sharding | None
    ) -> None:
        self.accelerator, self.sharding = accelerator, sharding
        self.is_several = accelerator.num_processes > 1
        self.body: nn.Module = body
        if sharding is not None:
            _shard(body, units, sharding)
        elif self.is_several:
            # A part may be unused in a step. Gradients are views of the buckets that are averaged.
            self.body = DistributedDataParallel(
                body,
                **_KEEPING_BUFFERS,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    @property
    def is_sharded(self) -> bool:
        """Every process has a part of each weight."""
        return self.sharding is not None

    def call(self, function: Callable[[], T], *, is_averaged: bool = True) -> T:
        """Call what uses the weights; its gradients are averaged over processes, or added up first.

        Shards are averaged in any case: adding them up first would need room for whole gradients.
        """
        body = self.body
        if isinstance(body, DistributedDataParallel) and not is_averaged:
            with body.no_sync():
                added_up: T = body(function)
            return added_up
        found: T = body(function)
        return found

    @torch.no_grad()
    def look(self, function: Callable[[], T]) -> T:
        """Call what uses the weights without gradients; with shards all processes must call it."""
        if not self.is_sharded:
            return function()
        found: T = self.body(function)
        for module in self.body.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return found

    @torch.no_grad()
    def make_whole(self) -> None:
        """Replace shards by whole weights in the main process, to write them: training is over."""
        if not self.is_sharded:
            return
        for module in self.body.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not isinstance(parameter, DTensor):
                    continue  # reached a second time
                whole = parameter.full_tensor()
                if self.accelerator.is_main_process:
                    setattr(module, name, nn.Parameter(whole, requires_grad=False))

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all processes."""
        if not self.is_several:
            return values
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    @torch.no_grad()
    def clip(self, parameters: list[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients so that their norm, over all processes, is at most `limit`; return it."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.float()

    def host_group(self, timeout_minutes: int) -> ProcessGroup | None:
        """A group of all processes on the host, in which shards are written; None without them."""
        if not self.is_sharded:
            return None
        timeout = timedelta(minutes=timeout_minutes)
        group: ProcessGroup = torch.distributed.new_group(backend="gloo", timeout=timeout)
        return group

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()


def _shard(body: Body, units: nn.ModuleList, sharding: Sharding) -> None:
    body.units = units  # what is gathered within the walk must be found below its root
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if sharding.mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast sees to that
    )
    device = next(body.parameters()).device.type
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device, (torch.distributed.get_world_size(),)),
        "mp_policy": precision,
        "offload_policy": sharding.offload,
        "reshard_after_forward": sharding.reshard_after_forward,
    }
    for unit in units:
        fully_shard(unit, **settings)
    done = set(units.parameters())
    # Nothing stays gathered between two steps, where the average is swapped in.
    fully_shard(body, ignored_params=done, **{**settings, "reshard_after_forward": True})
    if device == "cpu":
        for module in body.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo has no mean


@contextlib.contextmanager
def naming_lost_processes(processes: int, checkpoints: object) -> Iterator[None]:
    """Turn what torch says when another process is gone into one line.

    Raises:
        ProcessLost: Another process has ended, or has not answered in time.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not _is_of_communication(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProcessLost(
            f"one of the {processes} processes is gone or did not answer in time ({first}); look "
            f"for its own error, then run the same command again to go on from the last checkpoint "
            f"in {checkpoints}"
        ) from error


def _is_of_communication(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))
