"""Device memory, streams and CUDA graphs through `cuda-python`, without torch.

The few calls that a backend needs, each checked, with shapes beside the bytes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import BackendUnavailable, BootPIGError, OutOfDeviceMemory

Array: TypeAlias = npt.NDArray[Any]

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the addresses that it is given."""

INSTALL = "pip install cuda-python"


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to what addresses are aligned to."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class DeviceArray:
    """A block of device memory that is freed with this object.

    Attributes:
        address: Of the first byte.
        shape: Row-major.
        dtype: Of an element.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: Any) -> None:
        """Allocate; the contents are what was there before."""
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        # An empty tensor still needs an address.
        self.address = cuda.allocate(max(ALIGNMENT, self.nbytes))
        self._free = weakref.finalize(self, cuda.free, self.address)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one element of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class PinnedArray:
    """Host memory that the device reads itself, so that a copy from it need not wait. Bytes.

    Attributes:
        address: Of the first byte.
        array: uint8 [nbytes], the memory as numpy sees it.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        """Allocate; the contents are what was there before."""
        self.address = cuda.allocate_pinned(nbytes)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * nbytes).from_address(self.address)
        )
        self._free = weakref.finalize(self, cuda.free_pinned, self.address)


class Event:
    """A point in the order of a stream; freed with this object."""

    def __init__(self, cuda: Cuda) -> None:
        """Make one that nothing waits for yet."""
        self.handle = cuda.create_event()
        self._free = weakref.finalize(self, cuda.destroy_event, self.handle)


class Cuda:
    """One device with one stream, on which everything runs in order, and one for copies ahead.

    The second stream brings in what a later step reads, while a step runs on the first. Nothing
    orders the two but `mark` and `hold`.

    Args:
        index: Number of the device.

    Raises:
        BackendUnavailable: `cuda-python` is not installed, or there is no such device.
    """

    def __init__(self, index: int) -> None:
        """Choose the device and make the stream."""
        self._api = _cuda_runtime()
        status, count = self._api.cudaGetDeviceCount()
        if int(status) != 0:
            raise BackendUnavailable(
                f"no CUDA device can be used ({self._reason(status)}); install the NVIDIA driver, "
                "or choose another backend, such as onnxruntime, with a bundle for it"
            )
        if index >= count:
            raise BackendUnavailable(
                f"device is cuda:{index}, but there are {count} CUDA devices, counted from 0; "
                "choose another"
            )
        self.index = index
        self.activate()
        self.stream = int(self._call("cudaStreamCreate"))
        self._copies = int(self._call("cudaStreamCreate"))
        # Whatever was made of this device refers to it, so the streams go last.
        self._free = weakref.finalize(self, _destroy, self._api, (self.stream, self._copies))

    def activate(self) -> None:
        """Make this thread use the device; CUDA remembers it for each thread apart."""
        self._call("cudaSetDevice", self.index)

    def architecture(self) -> str:
        """Compute capability as targets are named, `sm_89`."""
        attribute = self._api.cudaDeviceAttr
        major, minor = (
            int(self._call("cudaDeviceGetAttribute", which, self.index))
            for which in (
                attribute.cudaDevAttrComputeCapabilityMajor,
                attribute.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"sm_{major}{minor}"

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises:
            OutOfDeviceMemory: There is not enough.
        """
        status, address = self._api.cudaMalloc(nbytes)
        if int(status) != 0:
            what = f"allocating an array on cuda:{self.index} ({self._reason(status)})"
            raise OutOfDeviceMemory(what, asked_bytes=nbytes)
        return int(address)

    def free(self, address: int) -> None:
        """Give memory back; waits until nothing uses it."""
        self._api.cudaFree(address)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array on the device."""
        return DeviceArray(self, shape, dtype)

    def upload(self, array: Array, dtype: Any = None) -> DeviceArray:
        """A copy of a host array, of another type if asked for."""
        host = np.ascontiguousarray(array, dtype=dtype)
        target = self.empty(host.shape, host.dtype)
        self.copy_in(host, target)
        return target

    def copy_in(self, host: Array, target: DeviceArray) -> None:
        """Host -> device; the host array may be changed when this returns."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "cudaMemcpyAsync", target.address, host.ctypes.data, host.nbytes, kind, self.stream
        )
        self.wait()

    def download(self, source: DeviceArray) -> Array:
        """Device -> host, after everything before it on the stream."""
        host = np.empty(source.shape, source.dtype)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(
            "cudaMemcpyAsync", host.ctypes.data, source.address, source.nbytes, kind, self.stream
        )
        self.wait()
        return host

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """Device -> device on the stream; returns at once."""
        if nbytes:
            kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def pinned(self, nbytes: int) -> PinnedArray:
        """Host memory to copy ahead from."""
        return PinnedArray(self, nbytes)

    def event(self) -> Event:
        """A point to wait for; counts as reached until it is marked."""
        return Event(self)

    def copy_ahead(self, source: int, target: int, nbytes: int) -> None:
        """Pinned host memory -> device on the stream of copies; returns at once."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, nbytes, kind, self._copies)

    def mark(self, event: Event, *, ahead: bool) -> None:
        """The event is reached when all that was put on the stream so far is done.

        Args:
            event: Which.
            ahead: The stream of copies, in place of that of the steps.
        """
        self._call("cudaEventRecord", event.handle, self._copies if ahead else self.stream)

    def hold(self, event: Event, *, ahead: bool) -> None:
        """What is put on the stream from now on waits for the event; the host does not."""
        self._call("cudaStreamWaitEvent", self._copies if ahead else self.stream, event.handle, 0)

    def wait_for(self, event: Event) -> None:
        """The host waits for an event."""
        self._call("cudaEventSynchronize", event.handle)

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of new pinned memory.

        Raises:
            BootPIGError: There is not enough.
        """
        status, address = self._api.cudaMallocHost(nbytes)
        if int(status) != 0:
            raise BootPIGError(
                f"cannot pin {nbytes / 1e6:.0f} MB of host memory ({self._reason(status)}); draw "
                "fewer pictures at once, or free memory"
            )
        return int(address)

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back, when no copy reads it any more."""
        self._api.cudaStreamSynchronize(self._copies)
        self._api.cudaFreeHost(address)

    def create_event(self) -> Any:
        """A new event; it takes no times."""
        return self._call("cudaEventCreateWithFlags", self._api.cudaEventDisableTiming)

    def destroy_event(self, handle: Any) -> None:
        """Free an event."""
        self._api.cudaEventDestroy(handle)

    def wait(self) -> None:
        """Until the stream of the steps is empty."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record what `work` puts on the stream; nothing is run."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return CudaGraph(self, executable)

    def launch(self, executable: Any) -> None:
        """Put a recorded graph on the stream."""
        self._call("cudaGraphLaunch", executable, self.stream)

    def destroy_graph(self, executable: Any) -> None:
        """Free a recorded graph."""
        self._api.cudaGraphExecDestroy(executable)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if int(status) != 0:
            raise BootPIGError(
                f"{name} failed on cuda:{self.index}: {self._reason(status)}; "
                "the GPU may be lost or in use by another program, try again"
            )
        return values[0] if values else None

    def _reason(self, status: Any) -> str:
        _, text = self._api.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


class CudaGraph:
    """Recorded work; freed with this object."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        """Keep what `Cuda.capture` recorded."""
        self._cuda = cuda
        self._executable = executable
        self._free = weakref.finalize(self, cuda.destroy_graph, executable)

    def launch(self) -> None:
        """Run it once, in the order of the stream."""
        self._cuda.launch(self._executable)


def _destroy(api: Any, streams: tuple[int, ...]) -> None:
    """What is on them is done first."""
    for stream in streams:
        api.cudaStreamDestroy(stream)


def _cuda_runtime() -> Any:
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # since 12.6 and before
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # the package above it
            found = None
        if found is not None:
            return importlib.import_module(name)
    raise BackendUnavailable(f"cuda-python is not installed; install it with: {INSTALL}")
