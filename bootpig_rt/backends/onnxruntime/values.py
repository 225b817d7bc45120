"""Arrays on the device of ONNX Runtime: upload, empty memory, and a part of one as an output."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.cuda.memory import Cuda
from bootpig_rt.errors import BackendUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Memory at hand that a graph writes an output into.

    Attributes:
        address: On the device.
        shape: Of the output.
        dtype: Of the output.
    """

    address: int
    shape: tuple[int, ...]
    dtype: Any


def device_of(name: str) -> tuple[str, int]:
    """`cpu` -> (`cpu`, 0), `cuda:1` -> (`cuda`, 1)."""
    kind, _, index = name.partition(":")
    return kind, int(index or 0)


def to_device(array: np.ndarray[Any, Any], device: str) -> ort.OrtValue:
    """A copy of an array on the device; on the CPU the array itself, which must not change."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *device_of(device))


def empty(shape: tuple[int, ...], dtype: Any, device: str) -> ort.OrtValue:
    """Memory on the device that nothing was written to."""
    return ort.OrtValue.ortvalue_from_shape_and_type(
        list(shape), np.dtype(dtype), *device_of(device)
    )


def rows_of(value: ort.OrtValue, rows: slice, dtype: Any) -> Place:
    """Some rows of an array as a place."""
    first, *rest = value.shape()
    row_bytes = int(np.prod(rest)) * np.dtype(dtype).itemsize
    shape = (rows.stop - rows.start, *rest)
    assert 0 <= rows.start < rows.stop <= first
    return Place(value.data_ptr() + rows.start * row_bytes, shape, np.dtype(dtype))


def concatenate(values: Sequence[ort.OrtValue], device: str) -> ort.OrtValue:
    """Arrays of one type in a row along the first axis, a new array on the device.

    On a GPU copied there by `cuda-python`, which the extra `gpu` installs; without it, or where it
    does not go with the driver, through the host.
    """
    cuda = None if device == "cpu" else _cuda(device_of(device)[1])
    if cuda is None:
        return to_device(np.concatenate([value.numpy() for value in values]), device)
    return copied_in_a_row(values, device, cuda)


def copied_in_a_row(values: Sequence[ort.OrtValue], device: str, cuda: Any) -> ort.OrtValue:
    """`concatenate` on the device: ONNX Runtime has finished what it launched when it returns."""
    first = values[0]
    rows = sum(value.shape()[0] for value in values)
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[first.data_type()]
    whole = empty((rows, *first.shape()[1:]), dtype, device)
    cuda.activate()
    address = whole.data_ptr()
    for value in values:
        nbytes = int(value.tensor_size_in_bytes())
        cuda.copy(value.data_ptr(), address, nbytes)
        address += nbytes
    cuda.wait()
    return whole


@functools.cache
def _cuda(index: int) -> Cuda | None:
    try:
        return Cuda(index)
    except BackendUnavailable as error:
        logger.info("reference tables of several subjects are joined on the host: %s", error)
        return None
