"""Sessions of ONNX Runtime and the arrays on its device: launches, and errors that say what to do.

Knows graphs by name and bytes; knows nothing about what they compute.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from bootpig_rt.backends.host_memory import return_freed_memory
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.errors import (
    BootPIGError,
    BundleError,
    EngineError,
    OutOfDeviceMemory,
)

# What ONNX Runtime raises; its exceptions have no common base but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.EPFail,
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)

LAUNCH_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, MemoryError)
"""What uploads and launches raise; `failed` makes our errors of them."""

NUMPY_TYPE: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
"""By the name that ONNX Runtime has for them."""

_NO_ROOM = ("allocate", "out of memory", "bad_alloc")

_TOO_NEW = re.compile(r"opset (\d+) is under development|till opset (\d+)")


class Sessions:
    """The sessions of one bundle on one device, each created when it is first asked for.

    Args:
        folder: Holds the weights that the graphs point to.
        read: Name of a graph -> its bytes, checked.
        device: `cpu` or `cuda:N`.
        options: How they use the machine.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[str], bytes],
        *,
        device: str,
        options: OnnxRuntimeOptions,
    ) -> None:
        """Nothing is loaded yet."""
        self._folder = folder
        self._read = read
        self._device = device
        self._options = options
        self._lock = threading.Lock()
        # In the order of their last use.
        self._futures: OrderedDict[str, Future[ort.InferenceSession]] = OrderedDict()

    def prepare(self, names: Iterable[str]) -> None:
        """Create several sessions, two at a time, and wait for them.

        Does nothing where few are kept: each is created when it is asked for.
        """
        if self._options.sessions_kept:
            return
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(self.get, names):
                pass

    def begin(self, name: str) -> None:
        """Create a session that will be needed soon, beside what runs now.

        What goes wrong is raised by `get`, should the graph be needed after all.
        """
        if not self._options.sessions_kept:
            threading.Thread(target=self._try, args=(name,)).start()

    def _try(self, name: str) -> None:
        with contextlib.suppress(BootPIGError):
            self.get(name)

    def get(self, name: str) -> ort.InferenceSession:
        """The session of a graph; threads that ask for it at once share one.

        Raises:
            BundleError: The graph is damaged, or needs a newer ONNX Runtime.
            OutOfDeviceMemory: There is no room for it.
        """
        with self._lock:
            future = self._futures.get(name)
            is_ours = future is None
            if future is None:
                kept = self._options.sessions_kept
                while kept and len(self._futures) >= kept:
                    self._futures.popitem(last=False)  # who runs it holds it until the end
                    return_freed_memory()
                future = self._futures[name] = Future()
            self._futures.move_to_end(name)
        if is_ours:
            try:
                future.set_result(self._create(name))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(name, None)
                future.set_exception(error)
        return future.result()

    def launch(
        self,
        name: str,
        inputs: Mapping[str, np.ndarray[Any, Any] | ort.OrtValue],
        *,
        into: Mapping[str, ort.OrtValue] | None = None,
        rows: slice = slice(0),
    ) -> dict[str, ort.OrtValue]:
        """Run a graph once; its outputs stay on the device.

        Args:
            name: Of the graph.
            inputs: By name.
            into: Arrays at hand; outputs of these names are written into some rows of them.
            rows: Which ones.

        Raises:
            OutOfDeviceMemory: There was no room.
            EngineError: Anything else that ONNX Runtime refuses.
        """
        session = self.get(name)
        place = _place(self._device)
        try:
            binding = session.io_binding()
            for key, value in inputs.items():
                if isinstance(value, np.ndarray):
                    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *place)
                binding.bind_ortvalue_input(key, value)
            names = [output.name for output in session.get_outputs()]
            for output in names:
                whole = None if into is None else into.get(output)
                if whole is None:
                    binding.bind_output(output, *place)
                    continue
                count, *rest = whole.shape()
                assert 0 <= rows.start < rows.stop <= count
                address = whole.data_ptr() + rows.start * (whole.tensor_size_in_bytes() // count)
                dtype = NUMPY_TYPE[whole.data_type()].type
                binding.bind_output(output, *place, dtype, [rows.stop - rows.start, *rest], address)
            session.run_with_iobinding(binding)
            return dict(zip(names, binding.get_outputs(), strict=True))
        except LAUNCH_ERRORS as error:
            raise failed(f"running the graph {name}", error) from error

    def _create(self, name: str) -> ort.InferenceSession:
        options, chosen = ort.SessionOptions(), self._options
        options.log_severity_level = 3
        options.intra_op_num_threads = chosen.intra_op_threads
        options.enable_cpu_mem_arena = chosen.arena
        if chosen.portable:
            level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = level
        spinning = "1" if chosen.spinning else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        # Each session has threads of its own. Awake after a launch, they would take the cores from
        # the next graph: a reference pass after a step takes 1.7 times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # The graph comes as the bytes that were checked; its weights lie beside it.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self._folder)
        )
        graph = self._read(name)
        left_out = None if chosen.fold_constants else ["ConstantFolding"]
        try:
            return ort.InferenceSession(
                graph, options, providers=self._providers(), disabled_optimizers=left_out
            )
        except ORT_ERRORS as error:
            raise self._explain(name, error) from error

    def _providers(self) -> list[Any]:
        if self._device == "cpu":
            return ["CPUExecutionProvider"]
        cuda: dict[str, str] = {
            "device_id": self._device.partition(":")[2] or "0",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        }
        if self._options.cuda_memory_bytes:
            cuda["gpu_mem_limit"] = str(self._options.cuda_memory_bytes)
        return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]

    def _explain(self, name: str, error: Exception) -> BootPIGError:
        text = _one_line(error)
        if _is_out_of_memory(error):
            return OutOfDeviceMemory(f"loading the graph {name}")
        found = _TOO_NEW.search(text)
        if found is not None:
            reason = (
                f"is of an opset that onnxruntime {ort.__version__} does not know "
                f"(it knows up to {found[2] or int(found[1]) - 1})"
            )
            fix = "pip install --upgrade onnxruntime, or build the bundle again on this machine"
        else:
            reason = f"is truncated, damaged or wrong: {text[:200]}"
            fix = "copy the bundle again, or build it again with bootpig-rt build-engine"
        return BundleError(f"graph {name} in {self._folder} {reason}; {fix}", self._folder)


def to_device(array: np.ndarray[Any, Any], device: str) -> ort.OrtValue:
    """A copy of an array on the device; on the CPU the array itself, which must not change."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *_place(device))


def empty(shape: Sequence[int], dtype: Any, device: str) -> ort.OrtValue:
    """Memory on the device that nothing was written to."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype), *_place(device))


def failed(what: str, error: Exception) -> BootPIGError:
    """Our error for one of `LAUNCH_ERRORS`.

    Args:
        what: Was done, for the message.
        error: What ONNX Runtime raised.
    """
    if _is_out_of_memory(error):
        return OutOfDeviceMemory(what)
    return EngineError(
        f"onnxruntime {ort.__version__} failed while {what}: {_one_line(error)[:300]}; verify the "
        "bundle with bootpig-rt verify DIR"
    )


def _place(device: str) -> tuple[str, int]:
    """`cpu` -> (`cpu`, 0), `cuda:1` -> (`cuda`, 1)."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in _NO_ROOM)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
