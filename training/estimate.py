"""What a run will need, before it runs: memory of each process, time, data, disk.

Weights and what belongs to them are counted. Activations and operations are those of one sample,
measured while its loss and gradients are computed here; they grow with the number of samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct, structs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bootpig_rt.training.config import OptimizerName, TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.parts import parts_of_step
from bootpig_rt.training.stage import Stage

Shape = Sequence[int]

FLOAT = 4
MOMENTS: dict[OptimizerName, float] = {
    "adamw": 8.0,
    "adamw8bit": 2.0 + 8.0 / 256,
    "muon": 4.0,
}
"""Bytes for each trained weight; in eight bits, two scales for 256 of them. Muon keeps one moment
of matrices, which are nearly all."""

PEAKS = {"a100": 312e12, "h100": 989e12}
"""Operations a second in bfloat16, as the maker's data sheets have them, without sparsity."""
REACHED = 0.4
"""Share of the peak that the estimate of time takes a GPU to reach."""


class ModuleSize(Struct, frozen=True):
    """Weights of a module, and how many of them are trained."""

    parameters: int
    trained: int


class Memory(Struct, frozen=True):
    """Bytes in one process.

    `weights` are those that it holds between steps, `gathered` what FSDP adds while it computes;
    `on_host` the averages if they are there, and the copy that a checkpoint is written from.
    """

    weights: int
    gathered: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    on_host: int

    @property
    def on_device(self) -> int:
        """All but what is on the host."""
        return sum(structs.astuple(self)[:-1])


class Plan(Struct, frozen=True):
    """What a run needs.

    `hours_here` is of the machine that planned, at the speed that one sample had; `hours_on` of
    GPUs by name, at 40 % of their peak; both of all processes together. `cache_bytes` are latents
    and text states, which are kept; `disk_bytes` has them too.
    """

    modules: dict[str, ModuleSize]
    processes: int
    is_sharded: bool
    samples: int
    samples_per_step: int
    samples_seen: int
    epochs: float
    data_bytes: int
    cache_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    memory: Memory
    flops_of_sample: int
    hours_here: float
    hours_on: dict[str, float]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As json has it."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        plain["memory"]["on_device"] = self.memory.on_device
        return plain


def _attention(q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(
    output: Shape, q: Shape, k: Shape, v: Shape, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(output, q, k, v))


_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operations of the CPU's attention, which torch does not count."""


@dataclass
class Probe:
    """What one sample's loss and gradients needed.

    Attributes:
        flops: Forward and backward.
        seconds: Likewise.
        activations: Bytes kept for the gradients, weights in another type apart.
        between: Those of them that no operation of a walk made, and the inputs of operations.
        largest: Of one operation.
        casts: Bytes of weights in another type.
    """

    flops: int = 0
    seconds: float = 0.0
    activations: int = 0
    between: int = 0
    largest: int = 0
    casts: int = 0
    _seen: dict[int, Any] = field(default_factory=dict)

    def kept(self, batch_size: int, *, is_checkpointed: bool) -> int:
        """Bytes of activations of a batch."""
        of_sample = self.between + self.largest if is_checkpointed else self.activations
        return batch_size * of_sample + self.casts


def probe_stage(stage: Stage, config: TrainConfig) -> Probe:
    """Compute one sample's loss and gradients, and watch."""
    probe = Probe()
    modules = stage.modules().values()
    shapes = {tuple(p.shape) for module in modules for p in module.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    weights = {
        _memory_of(p)[0] for module in [*modules, *stage.frozen()] for p in module.parameters()
    }
    inside: list[int] = []

    def count(tensor: Tensor) -> int:
        """Bytes that were not seen yet; the memory is held, so that no other takes its place."""
        place, storage = _memory_of(tensor)
        if place in weights or place in probe._seen:
            return 0
        probe._seen[place] = storage
        return int(storage.nbytes())

    def pack(tensor: Tensor) -> Tensor:
        size = count(tensor)
        if tuple(tensor.shape) in shapes:
            probe.casts += size
        else:
            probe.activations += size
            if inside:
                inside[-1] += size
            else:
                probe.between += size
        return tensor

    def around(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
        of_inputs = sum(count(arg) for arg in args if isinstance(arg, Tensor))
        probe.between += of_inputs
        probe.activations += of_inputs
        inside.append(0)
        found = function(module, *args)
        probe.largest = max(probe.largest, inside.pop())
        return found

    with (
        _called_by(stage, around),
        FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter,
    ):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss, _ = stage.loss(torch.zeros(1, dtype=torch.long), Draws(config.seed, 0, [0]))
        loss.backward()
        probe.seconds = time.perf_counter() - started
    probe.flops = int(counter.get_total_flops())
    probe._seen.clear()
    for module in modules:
        module.zero_grad(set_to_none=True)
    return probe


def _memory_of(tensor: Tensor) -> tuple[int, torch.UntypedStorage]:
    """What views of the same memory share, also of tensors that have none (fake ones)."""
    storage = tensor.untyped_storage()
    return int(storage._cdata), storage


@contextmanager
def _called_by(stage: Stage, around: Callable[..., Any]) -> Iterator[None]:
    for walk in stage.walks():
        walk.around = around
    try:
        yield
    finally:
        for walk in stage.walks():
            walk.around = None


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def make_plan(
    stage: Stage,
    config: TrainConfig,
    *,
    samples: int,
    caches_of_sample: float,
    processes: int = 1,
    is_sharded: bool = False,
) -> Plan:
    """What a run of a stage will need.

    Args:
        stage: On the CPU.
        config: Of the run.
        samples: Of its data; the stage may have a few of them.
        caches_of_sample: Bytes on the disk that the stage made beforehand for each of its own.
        processes: With one GPU each.
        is_sharded: By FSDP.

    Raises:
        ConfigError: `samples_per_step` cannot be divided among the processes.
    """
    modules = stage.modules()
    sizes = {
        name: ModuleSize(
            _count(module.parameters()), _count(p for p in module.parameters() if p.requires_grad)
        )
        for name, module in modules.items()
    }
    all_weights = sum(size.parameters for size in sizes.values())
    trained = sum(size.trained for size in sizes.values())
    frozen = sum(_count(module.parameters()) for module in stage.frozen())
    shards = processes if is_sharded else 1
    gathered = 0
    if is_sharded:
        operations = {each for walk in stage.walks() for each in walk.operations()}
        of_units = [_count(module.parameters()) for module in operations]
        width = 2 if config.mixed_precision == "bf16" else FLOAT
        # What no operation owns is gathered at once; of operations two, one ahead of its use.
        rest = all_weights - sum(of_units)
        gathered = width * (rest + 2 * max(of_units, default=0))
    moments = MOMENTS[config.optimizer.name]
    of_checkpoint = int(trained * (2 * FLOAT + moments))
    caches, result = int(caches_of_sample * samples), FLOAT * (all_weights + frozen)
    average = FLOAT * trained // shards
    is_on_host = config.optimizer.ema_device == "host"
    probe = probe_stage(stage, config)
    is_checkpointed = config.checkpointing == "blocks"
    memory = Memory(
        weights=FLOAT * (all_weights // shards + frozen),
        gathered=gathered,
        gradients=FLOAT * trained // shards,
        optimizer=int(moments * trained) // shards,
        average=0 if is_on_host else average,
        activations=probe.kept(config.batch_size, is_checkpointed=is_checkpointed),
        on_host=of_checkpoint // shards + (average if is_on_host else 0),
    )
    samples_per_step = config.batch_size * parts_of_step(config, processes) * processes
    seen = config.steps * samples_per_step
    # Computed anew: a third pass forward beside one forward and two backward.
    flops = probe.flops * 4 // 3 if is_checkpointed else probe.flops
    data = Path(config.data)
    return Plan(
        modules=sizes,
        processes=processes,
        is_sharded=is_sharded,
        samples=samples,
        samples_per_step=samples_per_step,
        samples_seen=seen,
        epochs=round(seen / samples, 2),
        data_bytes=sum(path.stat().st_size for path in data.rglob("*") if path.is_file()),
        cache_bytes=caches,
        checkpoint_bytes=of_checkpoint,
        disk_bytes=of_checkpoint * (config.keep_checkpoints + 1) + result + caches,
        memory=memory,
        flops_of_sample=flops,
        hours_here=seen * probe.seconds / 3600,
        hours_on={
            name: seen * flops / (REACHED * peak) / processes / 3600 for name, peak in PEAKS.items()
        },
        config=config.to_dict(),
    )


def in_words(plan: Plan) -> str:
    """A plan for people."""
    memory = plan.memory
    rows = {name: getattr(memory, name) for name in memory.__struct_fields__ if name != "on_host"}
    times = ", ".join(
        f"{_hours(hours)} on {plan.processes} {name}" for name, hours in plan.hours_on.items()
    )
    lines = [
        *(
            f"{name}: {size.parameters:,} weights, {size.trained:,} of them trained"
            for name, size in plan.modules.items()
        ),
        f"{plan.samples:,} samples, {plan.samples_per_step} a step, {plan.epochs} epochs",
        "",
        f"memory of each of {plan.processes} processes"
        + (", sharded" if plan.is_sharded else "")
        + f": {_size(memory.on_device)}, and {_size(memory.on_host)} on the host",
        *(f"  {name:12}{_size(size):>10}" for name, size in rows.items()),
        "",
        f"disk: {_size(plan.disk_bytes)} for checkpoints of {_size(plan.checkpoint_bytes)}, "
        f"{_size(plan.cache_bytes)} of latents and text states, and the result; "
        f"data: {_size(plan.data_bytes)}",
        f"time: {_hours(plan.hours_here)} on this CPU; at {REACHED:.0%} of the peak {times}, with "
        f"{plan.flops_of_sample / 1e9:,.1f} GFLOP a sample",
        "",
        json.dumps(plan.config, indent=1),
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
