"""Recordings of the torch backend: buffers of fixed address and what runs over them.

On CUDA a function is recorded once into a CUDA graph and replayed, so that the host launches one
thing in place of hundreds. On a CPU a recording is the function itself: the same buffers, the same
copies, the same locks. This file knows nothing about pairs.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock, RLock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.torch.buckets import bucket

logger = logging.getLogger(__name__)

_WARM_UPS = 2
"""Calls ahead of a recording: libraries load, kernels are compiled and chosen."""

_ONE_AT_A_TIME = Lock()
"""Ahead of a recording torch waits for the whole device, which another recording would not bear."""

T = TypeVar("T")


class _Recording:
    """A CUDA graph, and the function that it was recorded from.

    The graph reads the tensors of the function by address, so they must outlive it.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, function: Callable[[], object]) -> None:
        self._graph = graph
        self._function = function

    def __call__(self) -> None:
        """Do what the function did when it was recorded."""
        self._graph.replay()


class Lane:
    """A stream with its recordings. Streams of two lanes run beside each other.

    Recordings of a lane share the memory of their intermediate results. So one thread at a time
    puts work onto the stream; it does not wait for the device while it holds the lock, except to
    record.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        records: Keep recordings; without, work is done as it comes.
    """

    def __init__(self, device: str, *, records: bool) -> None:
        """Make the stream."""
        self.device = device
        self.records = records
        self.num_recordings = 0
        self.stream: Any = torch.cuda.Stream(device) if device.startswith("cuda") else None
        self._recording_stream: Any = None if self.stream is None else torch.cuda.Stream(device)
        self._pool: Any = None
        self._lock = RLock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Put work onto the stream; alone where there are shared buffers."""
        alone = self._lock if self.records else nullcontext()
        with alone, torch.inference_mode(), self.on_stream():
            yield

    def on_stream(self) -> AbstractContextManager[Any]:
        """What is done here comes after the work so far; anyone may, for their own tensors."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def record(self, function: Callable[[], object]) -> Callable[[], object]:
        """What to call in place of the function; keeps the function, and so the tensors it holds.

        The tensors must keep their addresses. The recording is made on a stream of its own: what
        other threads put onto this lane's stream meanwhile, a download say, is no part of it.

        Raises:
            torch.OutOfMemoryError: There is no room.
        """
        self.num_recordings += 1
        if self.stream is None:
            return function
        for _ in range(_WARM_UPS):
            function()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            recording = torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._recording_stream,
                capture_error_mode="thread_local",  # other threads may use the device meanwhile
            )
            with _ONE_AT_A_TIME, recording:
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first_line = (str(error).splitlines() or [""])[0]
            logger.warning("runs without a CUDA graph, which could not be recorded: %s", first_line)
            return function
        return _Recording(graph, function)

    def forget(self) -> None:
        """The memory of recordings that are gone is not used for new ones."""
        with self._lock:
            self._pool = None

    def upload(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A copy on the device. On CUDA no one waits for it: work of this lane comes after it."""
        host = torch.tensor(array)  # a copy: the array may be read-only, or change
        if self.stream is None:
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def download(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """A copy on the host in float32. Waits for what was put onto the stream before."""
        tensor = tensor.float()
        if self.stream is None:
            return tensor.numpy().copy()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record(self.stream)
        done.synchronize()  # and not for what other threads put there since
        array: np.ndarray[Any, Any] = host.numpy()
        return array


class Kept(Generic[T]):
    """The last few things of a kind, each made when it is first asked for.

    Used by one thread at a time: inside `Lane.work`.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        """Start empty."""
        self._count = count
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for a key."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > self._count:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all; who uses one keeps it."""
        self._kept.clear()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)


class _Call:
    """A function over tensors of fixed address."""

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], lane: Lane
    ) -> None:
        self.inputs = [one.clone(memory_format=torch.contiguous_format) for one in inputs]
        self.outputs: Sequence[Tensor] = ()

        def run() -> None:
            self.outputs = function(*self.inputs)

        self.replay = lane.record(run)


class RecordedFunction:
    """A function of rows, with a recording for each bucket of them and each set of shapes.

    Args:
        function: Tensors in, tensors out, rows along their first axes that do not depend on each
            other; without a look at values.
        lane: Where it runs.
        kept: Recordings that are kept.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], lane: Lane, *, kept: int) -> None:
        """Nothing is recorded yet."""
        self._function = function
        self._lane = lane
        self.calls: Kept[_Call] = Kept(kept)

    @contextmanager
    def call(self, *inputs: Tensor) -> Iterator[Sequence[Tensor]]:
        """The outputs. They are valid, and the lane is taken, as long as the block runs.

        Args:
            inputs: On the device.
        """
        with self._lane.work():
            if not self._lane.records:
                yield self._function(*inputs)
                return
            rows = len(inputs[0])
            inputs = tuple(_padded(one, bucket(rows)) for one in inputs)
            key = tuple((tuple(one.shape), one.dtype) for one in inputs)
            call = self.calls.get(key, lambda: _Call(self._function, inputs, self._lane))
            for buffer, given in zip(call.inputs, inputs, strict=True):
                buffer.copy_(given, non_blocking=True)
            call.replay()
            yield tuple(output[:rows] for output in call.outputs)


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """With copies of the last row."""
    more = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])]) if more else tensor
