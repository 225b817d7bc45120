"""Ways to do the same, timed in turn: CUDA events on a GPU, the host's clock on a CPU.

A way is recorded into a CUDA graph where that is possible, so that the time is the device's and not
that of the host. A recording runs over several sets of inputs that together are larger than the
cache, as in a network where other layers run in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bootpig_rt.errors import BootPIGError

ROTATION_BYTES = 128 * 2**20
"""Inputs are used in turn so long as they take this much: over twice the cache of an H100."""

MOST_ROTATIONS = 16


@dataclass(frozen=True)
class Timed:
    """Times of one way.

    Attributes:
        samples_ms: Of the rounds, one call each.
        remark: What to know about them.
    """

    samples_ms: tuple[float, ...]
    remark: str = ""

    @property
    def ms(self) -> float:
        """Median."""
        return float(np.median(self.samples_ms))


def rotations(input_bytes: int, device: str) -> int:
    """How many sets of inputs outgrow the cache; two on a CPU, to run the same paths."""
    if not device.startswith("cuda"):
        return 2
    return max(2, min(MOST_ROTATIONS, -(-ROTATION_BYTES // max(1, input_bytes))))


class Prepared:
    """A way over several inputs, warmed up and ready to be timed.

    Args:
        calls: Does it once, one call an input.
        device: `cpu` or a CUDA device.
        records: Try a CUDA graph.
    """

    def __init__(
        self, calls: Sequence[Callable[[], object]], device: str, *, records: bool = True
    ) -> None:
        """Run all twice, then record.

        Raises:
            RuntimeError: What a call raised; torch.OutOfMemoryError is one.
        """
        self._calls = calls
        self._device = device
        self.remark = ""
        self._run: Callable[[], object] = self._run_all
        for _ in range(2):  # libraries load, kernels are compiled and chosen
            self._run_all()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
            if records:
                self._record()

    def time_ms(self) -> float:
        """Milliseconds of one call."""
        if not self._device.startswith("cuda"):
            start_s = time.perf_counter()
            self._run()
            return 1e3 * (time.perf_counter() - start_s) / len(self._calls)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        start.record()
        self._run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / len(self._calls)

    def _run_all(self) -> None:
        for call in self._calls:
            call()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run_all()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a library that waits for the device: the host launches it then
            torch.cuda.synchronize(self._device)
            self.remark = "launched by the host: it could not be recorded into a CUDA graph"
            return
        self._run = graph.replay


def time_in_turn(
    prepared: Mapping[str, Prepared], rounds: int, *, warmups: int = 3, seed: int = 0
) -> dict[str, Timed]:
    """Time all ways, each once a round, in a new order each round.

    A moment at a lower clock hits all ways alike.

    Args:
        prepared: What is timed, by name.
        rounds: How often, 1 and up.
        warmups: Rounds that are dropped: clocks rise.
        seed: Of the orders.
    """
    order = np.random.default_rng(seed)
    names = list(prepared)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmups + rounds):
        for place in order.permutation(len(names)):
            found = prepared[names[place]].time_ms()
            if index >= warmups:
                samples[names[place]].append(found)
    return {name: Timed(tuple(samples[name]), prepared[name].remark) for name in names}


def why_failed(error: Exception) -> tuple[str, str]:
    """Status and reason of a way that raised."""
    from bootpig_rt.errors import BackendUnavailable, OutOfDeviceMemory

    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, (torch.OutOfMemoryError, OutOfDeviceMemory)):
        return "out of memory", first_line
    if isinstance(error, (BackendUnavailable, NotAvailable)):
        return "not available", first_line
    return "failed", f"{type(error).__name__}: {first_line}"


class NotAvailable(BootPIGError):
    """A way that cannot run here; the message says why."""


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def free_memory(device: str) -> None:
    """Give back what dead recordings and tensors held."""
    import gc

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def device_bytes(device: str) -> tuple[int, int] | None:
    """Allocated now, and at most since the last reset; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    cuda: Any = torch.cuda
    return int(cuda.memory_allocated(device)), int(cuda.max_memory_allocated(device))
