"""Arrays on the device of ONNX Runtime: upload, empty memory, and a part of one as an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort


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


def bind_place(binding: ort.IOBinding, name: str, place: Place, device: str) -> None:
    """Make a graph write an output there."""
    binding.bind_output(
        name, *device_of(device), place.dtype.type, list(place.shape), place.address
    )
