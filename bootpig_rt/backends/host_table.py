"""How the numbers of a reference table are kept: five types, their bytes, and numpy to convert.

A table is L layers of keys and values, each [E, R, H, M, D]. Integers and float8 have one scale for
each head of each entry and reference, for keys and values apart, so that a large head does not
cost a small one its digits. numpy only: for tables on the host, on disk, and for backends that
are built on numpy. `backends/torch/tables.py` does the same on a device and gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16, float8_e4m3fn

from bootpig_rt.errors import NumericalError

FloatArray = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]

TableDtype: TypeAlias = Literal["float32", "float16", "bfloat16", "float8", "int8"]
TABLE_DTYPES: tuple[str, ...] = get_args(TableDtype)

Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]
"""What a pair computes in: how exact the numbers of its tables are, however they are kept."""

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
"""Those that need no graphs of their own."""

LayerShape: TypeAlias = tuple[int, int, int]
"""Heads, tokens and head dim of one self-attention: H, M, D."""

_WIDTH: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}
_LARGEST = {"float8": 448.0, "int8": 127.0}

NUMPY_TYPE: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,  # numpy itself has neither of these two: their bits
    "float8": np.uint8,
    "int8": np.int8,
}
_BITS_OF: dict[str, Any] = {"bfloat16": bfloat16, "float8": float8_e4m3fn}
_FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(float8_e4m3fn).astype(np.float32)


@dataclass(frozen=True)
class HostArray:
    """Keys or values of one layer.

    Attributes:
        values: [E, R, H, M, D] in the numpy type of the table's.
        scale: float32 [E, R, H, 1, 1] for float8 and int8, else None.
    """

    values: AnyArray
    scale: FloatArray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return int(self.values.nbytes) + (0 if self.scale is None else int(self.scale.nbytes))


@dataclass(frozen=True)
class HostTable:
    """A table in memory: what tiers, files and backends exchange.

    Attributes:
        dtype: How the numbers are kept.
        layers: L pairs of keys and values.
    """

    dtype: TableDtype
    layers: tuple[tuple[HostArray, HostArray], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def entry(self, index: int) -> tuple[tuple[FloatArray, FloatArray], ...]:
        """Keys and values of one entry, L pairs of float32 [R, H, M, D]."""
        return tuple(
            (_unpack_entry(k, index, self.dtype), _unpack_entry(v, index, self.dtype))
            for k, v in self.layers
        )

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """[E, R, H, M, D] of the keys of each layer."""
        return tuple(k.values.shape for k, _ in self.layers)

    @classmethod
    def of_rows(
        cls, dtype: TableDtype, arrays: Iterable[HostArray], entries: int, references: int
    ) -> HostTable:
        """A table of keys, values, keys, ... that are [E * R, H, M, D]: the same memory."""
        lead = (entries, references)
        parts = [
            HostArray(
                one.values.reshape(*lead, *one.values.shape[1:]),
                None if one.scale is None else one.scale.reshape(*lead, *one.scale.shape[1:]),
            )
            for one in arrays
        ]
        return cls(dtype, tuple(zip(parts[::2], parts[1::2], strict=True)))


class PackedRows:
    """A table that is packed as its rows come, E * R of them, entry by entry.

    Args:
        shapes: H, M, D of each layer.
        entries: E.
        references: R.
        dtype: How the table is to be kept.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], *, entries: int, references: int, dtype: TableDtype
    ) -> None:
        """Make room for all of it."""
        self._entries, self._references, self._dtype = entries, references, dtype
        rows = entries * references
        self._arrays = {
            name: HostArray(
                np.empty((rows, *shape), NUMPY_TYPE[dtype]),
                np.empty((rows, shape[0], 1, 1), np.float32) if dtype in _LARGEST else None,
            )
            for name, shape in named_layers(shapes).items()
        }

    def put(self, rows: slice, made: Mapping[str, FloatArray]) -> None:
        """Keep some rows: `k_0`, `v_0`, ... -> float32 [N, H, M, D].

        Raises:
            NumericalError: NaN or Inf, or numbers that the type cannot hold.
        """
        for name, whole in self._arrays.items():
            part = pack(made[name][np.newaxis], self._dtype)
            whole.values[rows] = part.values[0]
            if whole.scale is not None and part.scale is not None:
                whole.scale[rows] = part.scale[0]

    def table(self) -> HostTable:
        """The table, when all rows were put."""
        return HostTable.of_rows(
            self._dtype, self._arrays.values(), self._entries, self._references
        )


def named_layers(shapes: Sequence[LayerShape]) -> dict[str, LayerShape]:
    """`k_0`, `v_0`, `k_1`, ...: names in the graphs, and H, M, D of each."""
    return {f"{kind}_{index}": shape for index, shape in enumerate(shapes) for kind in "kv"}


def table_bytes(
    layers: Sequence[LayerShape], *, num_entries: int, num_references: int, dtype: TableDtype
) -> int:
    """Bytes of a table: E R sum over layers of 2 (H M D width + 4 H where there are scales).

    Args:
        layers: H, M, D of each self-attention, `PairSpec.reference_shapes`.
        num_entries: E, one for each timestep of the reference schedule.
        num_references: R.
        dtype: How the numbers are kept.
    """
    scale = 4 if dtype in _LARGEST else 0
    per_reference = sum(2 * (h * m * d * _WIDTH[dtype] + h * scale) for h, m, d in layers)
    return num_entries * num_references * per_reference


def pack(array: FloatArray, dtype: TableDtype) -> HostArray:
    """Keys or values float32 [E, R, H, M, D] in another type.

    Raises:
        NumericalError: NaN or Inf, or numbers that the type cannot hold.
    """
    if dtype == "float32":
        return HostArray(check_table(np.ascontiguousarray(array, np.float32), "table"))
    check_table(array, "table")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return HostArray(check_table(array.astype(np.float16), "table in float16"))
    if dtype == "bfloat16":
        return HostArray(array.astype(bfloat16).view(np.uint16))
    largest = np.float32(_LARGEST[dtype])
    scale = np.abs(array).max(axis=(-2, -1), keepdims=True) / largest
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    scaled = np.clip(array / scale, -largest, largest)
    if dtype == "int8":
        return HostArray(np.rint(scaled).astype(np.int8), scale)
    return HostArray(scaled.astype(float8_e4m3fn).view(np.uint8), scale)


def unpack(values: AnyArray, scale: FloatArray | None, dtype: TableDtype) -> FloatArray:
    """The numbers again, float32, of an array or a part of one."""
    if dtype == "bfloat16":
        values = values.view(bfloat16)
    if dtype == "float8":
        values = _FLOAT8_VALUES[values]
    numbers: FloatArray = values.astype(np.float32, copy=False)
    return numbers if scale is None else numbers * scale


def write_entry(array: HostArray, index: int, dtype: TableDtype, out: AnyArray) -> None:
    """One entry of keys or values, written to memory at hand in the type that this has.

    Args:
        array: Of a table of `dtype`.
        index: 0 to E - 1.
        dtype: How the table keeps its numbers.
        out: [R, H, M, D], float32 or float16.
    """
    values = array.values[index]
    is_same = values.dtype == out.dtype and array.scale is None
    out[...] = values if is_same else _unpack_entry(array, index, dtype)


def pack_table(layers: Sequence[tuple[FloatArray, FloatArray]], dtype: TableDtype) -> HostTable:
    """L pairs of float32 keys and values [E, R, H, M, D] as a table of a type.

    Raises:
        NumericalError: NaN or Inf, or numbers that the type cannot hold.
    """
    return HostTable(dtype, tuple((pack(k, dtype), pack(v, dtype)) for k, v in layers))


def check_table(array: AnyArray, what: str) -> AnyArray:
    """Return the array if it is finite: a table is checked before it is kept.

    Raises:
        NumericalError: NaN or Inf.
    """
    if not np.isfinite(array).all():
        raise NumericalError(
            f"NaN or Inf in the reference {what}, expected finite numbers; check the weights, "
            "or keep the table in a wider type"
        )
    return array


def check_host_table(table: HostTable) -> None:
    """Refuse NaN, Inf and scales that are not positive, in a table that was read from a file.

    Raises:
        NumericalError: Such a number.
    """
    for layer in table.layers:
        for part in layer:
            values = part.values
            if table.dtype in _BITS_OF:
                values = values.view(_BITS_OF[table.dtype])
            check_table(values, "table")
            if part.scale is not None:
                check_table(part.scale, "table's scales")
                if not (part.scale > 0).all():
                    raise NumericalError("a scale of the reference table is 0 or negative")


def _unpack_entry(array: HostArray, index: int, dtype: TableDtype) -> FloatArray:
    scale = None if array.scale is None else array.scale[index]
    return unpack(array.values[index], scale, dtype)
