"""One model with all its inputs and outputs bound to memory of numpy: nothing is copied.

bfloat16, which numpy lacks, is kept as its bits: uint16 here always means that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

AnyArray = npt.NDArray[Any]


class Launch:
    """An infer request over arrays, which may be run again and again.

    Args:
        model: Compiled.
        inputs: By name; read from where they lie at each start.
        outputs: By name; written where they lie. Others are made by OpenVINO.
    """

    def __init__(
        self,
        model: ov.CompiledModel,
        inputs: Mapping[str, AnyArray],
        outputs: Mapping[str, AnyArray] | None = None,
    ) -> None:
        """Bind all of it."""
        # First, so that it goes first: it waits for what runs before the arrays may go.
        self._request = model.create_infer_request()
        self._arrays = [inputs, outputs]
        for port in model.inputs:
            self._request.set_tensor(port, _tensor(inputs[port.any_name]))
        for port in model.outputs if outputs else ():
            if outputs is not None and port.any_name in outputs:
                self._request.set_tensor(port, _tensor(outputs[port.any_name]))

    def start(self) -> None:
        """Begin; returns at once."""
        self._request.start_async()

    def wait(self) -> None:
        """Until it has ended; raises what went wrong."""
        self._request.wait()

    def run(self) -> None:
        """Begin, and wait for the end."""
        self.start()
        self.wait()

    def output(self, name: str) -> AnyArray:
        """A copy of an output; bfloat16 as its bits."""
        tensor = self._request.get_tensor(name)
        data: AnyArray = tensor.data
        is_narrow = tensor.get_element_type() == ov.Type.bf16
        return data.view(np.uint16).copy() if is_narrow else data.copy()


def _tensor(array: AnyArray) -> ov.Tensor:
    """The memory of an array as OpenVINO's."""
    if not array.flags.c_contiguous:
        raise ValueError("expected an array in one piece")
    if not array.flags.writeable:
        array = _as_if_writeable(array)
    if array.dtype == np.uint16:
        return ov.Tensor(array, ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


def _as_if_writeable(array: AnyArray) -> AnyArray:
    """The same memory: OpenVINO takes no array that is read-only, though inputs are only read."""
    if array.size == 0:
        return array.copy()
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    same: AnyArray = np.ndarray(array.shape, array.dtype, memoryview(memory))
    return same
