"""Reference tables on a device: five types of numbers, kept there whole or streamed entry by entry.

The arithmetic is that of `backends/host_table.py`, and the bytes are equal: a table goes to the
host, to a file and to another backend without a change. This file knows nothing about subjects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.host_table import HostArray, HostTable, TableDtype
from bootpig_rt.errors import NumericalError
from bootpig_rt.models.unet import ReferenceKVLayers

_TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
_NAMES: dict[torch.dtype, TableDtype] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float8_e4m3fn: "float8",
    torch.int8: "int8",
}
_LARGEST = {"float8": 448.0, "int8": 127.0}


@dataclass(frozen=True)
class Scaled:
    """Keys or values of one layer with a scale for each head.

    Attributes:
        values: int8 or float8 [E, R, H, M, D].
        scale: float32 [E, R, H, 1, 1].
    """

    values: Tensor
    scale: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scale.nbytes


Stored: TypeAlias = "Tensor | Scaled"
Table: TypeAlias = "tuple[tuple[Stored, Stored], ...]"
"""L pairs of keys and values, each [E, R, H, M, D], on the device or, to be streamed, the host."""


def _packed(tensor: Tensor, dtype: TableDtype) -> Stored:
    scale = None
    packed = tensor
    if dtype in _LARGEST:
        largest = _LARGEST[dtype]
        tensor = tensor.float()
        scale = tensor.abs().amax(dim=(-2, -1), keepdim=True) / largest
        scale = torch.where(scale == 0, 1.0, scale)
        packed = (tensor / scale).clamp(-largest, largest)
        packed = packed.round() if dtype == "int8" else packed
    packed = packed.to(_TYPES[dtype])
    return packed if scale is None else Scaled(packed, scale)


def _check_finite(parts: list[Stored], dtype: TableDtype) -> None:
    """Read back once for all parts. NaN and Inf reach the scale where there is one.

    One sum a part usually answers; it can only overflow, never hide a number that is not finite.
    """
    told = [part.scale if isinstance(part, Scaled) else part for part in parts]
    sums = torch.stack([one.sum(dtype=torch.float32) for one in told])
    if bool(sums.isfinite().all()) or all(bool(one.isfinite().all()) for one in told):
        return
    raise NumericalError(
        f"NaN or Inf in the reference table in {dtype}, expected finite numbers; check the "
        "weights, or keep the table in a wider type"
    )


class TableBuilder:
    """Collects what the launches of a reference pass give, in one type.

    Args:
        num_entries: E.
        num_references: R.
        dtype: How the numbers are kept.
    """

    def __init__(self, num_entries: int, num_references: int, dtype: TableDtype) -> None:
        """Start empty; the first launch says how large the layers are."""
        self._shape = (num_entries, num_references)
        self._dtype = dtype
        self._parts: list[list[Tensor]] = []

    def put(self, rows: slice, layers: ReferenceKVLayers) -> None:
        """Keep some rows (entry, reference), L pairs of [n, H, M, D]. Waits for nothing."""
        packed = [_tensors(_packed(part, self._dtype)) for layer in layers for part in layer]
        if not self._parts:
            num_rows = self._shape[0] * self._shape[1]
            self._parts = [
                [one.new_empty((num_rows, *one.shape[1:])) for one in part] for part in packed
            ]
        for kept, part in zip(self._parts, packed, strict=True):
            for whole, some in zip(kept, part, strict=True):
                whole[rows] = some

    def table(self) -> Table:
        """All of them, [E, R, H, M, D]. Waits until they are computed.

        Raises:
            NumericalError: NaN or Inf, or numbers that the type cannot hold.
        """
        shaped = [
            _stored([one.view(*self._shape, *one.shape[1:]) for one in part])
            for part in self._parts
        ]
        _check_finite(shaped, self._dtype)
        return tuple(zip(shaped[::2], shaped[1::2], strict=True))


def table_nbytes(table: Table) -> int:
    """Bytes of a table."""
    return sum(k.nbytes + v.nbytes for k, v in table)


def download(table: Table) -> HostTable:
    """A table as numpy arrays in the same type."""
    first = table[0][0]
    dtype = _NAMES[first.values.dtype if isinstance(first, Scaled) else first.dtype]
    return HostTable(dtype, tuple((_to_numpy(k), _to_numpy(v)) for k, v in table))


def upload(table: HostTable, device: str, *, is_resident: bool) -> Table:
    """A table of numpy arrays as tensors.

    Args:
        table: The arrays.
        device: Of the pair.
        is_resident: Copy it there; otherwise it stays on the host, pinned where that helps.
    """

    def place(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(array).view(dtype)
        if is_resident:
            return tensor.to(device, copy=True)
        return tensor.pin_memory() if device.startswith("cuda") else tensor

    def stored(part: HostArray) -> Stored:
        values = place(_writable(part.values), _TYPES[table.dtype])
        if part.scale is None:
            return values
        return Scaled(values, place(_writable(part.scale), torch.float32))

    return tuple((stored(k), stored(v)) for k, v in table.layers)


class TableReader:
    """Gives each step what it reads, references of all tables counted through.

    One table on the device in the type of the steps is read where it lies, by the number of its
    entry (`whole`). Of others, steps get the entries that they read, converted and side by side;
    what lies on the host is copied one step ahead, beside the computation of the step before.

    Args:
        tables: Of the subjects of a batch.
        entry_of_step: int64 [S, T].
        device: Of the pair.
        dtype: That the steps compute in.
    """

    def __init__(
        self,
        tables: tuple[Table, ...],
        entry_of_step: np.ndarray[Any, Any],
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Nothing is copied yet."""
        self._tables = tables
        self._entries: list[tuple[int, ...]] = [tuple(step) for step in entry_of_step.T.tolist()]
        self._device = device
        self._dtype = dtype
        self._stream: Any = None
        if device.startswith("cuda"):
            if any(_is_on_host(table) for table in tables):
                self._stream = torch.cuda.Stream(device)
            _keep_for_stream(tables, torch.cuda.current_stream(device))
        self._now: tuple[tuple[int, ...], ReferenceKVLayers] | None = None
        self._ahead: tuple[tuple[int, ...], list[Table], Any] | None = None

    @property
    def whole(self) -> ReferenceKVLayers | None:
        """The one table, L pairs [E, R, H, M, D], where steps can read it as it lies."""
        if len(self._tables) != 1 or _is_on_host(self._tables[0], self._device):
            return None
        layers: list[tuple[Tensor, Tensor]] = []
        for k, v in self._tables[0]:
            if isinstance(k, Scaled) or isinstance(v, Scaled) or k.dtype != self._dtype:
                return None
            layers.append((k, v))
        return tuple(layers)

    @property
    def entry_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """[N_ref, H, M, D] of each layer: what `read` gives."""
        count = sum(_values(table[0][0]).shape[1] for table in self._tables)
        shapes = [_values(k).shape for k, _ in self._tables[0]] if self._tables else []
        return tuple((count, shape[2], shape[3], shape[4]) for shape in shapes)

    def reads(self, index: int) -> tuple[list[Tensor], tuple[int, ...]]:
        """A tensor that stands for each table, and the entry of it that step `index` reads."""
        return [_values(table[0][0]) for table in self._tables], self._entries[index]

    def read(self, index: int) -> ReferenceKVLayers | None:
        """Keys and values of step `index`, L pairs [N_ref, H, M, D] in the type of the steps."""
        if not self._tables:
            return None
        entries = self._entries[index]
        if self._now is None or self._now[0] != entries:
            self._now = None  # frees the entry of the step before
            self._now = (entries, self._join(self._fetch(entries)))
        self._look_ahead(index, entries)
        return self._now[1]

    def fill(self, buffers: ReferenceKVLayers, index: int) -> None:
        """Write what `read` would give into buffers of one entry, L pairs [1, N_ref, H, M, D].

        The buffers may have room for more references.
        """
        entries = self._entries[index]
        first = 0
        for table in self._fetch(entries):
            last = first + _values(table[0][0]).shape[0]
            for buffer, layer in zip(buffers, table, strict=True):
                for whole, part in zip(buffer, layer, strict=True):
                    _unpack_into(whole[0, first:last], part)
            first = last
        self._look_ahead(index, entries)

    def _look_ahead(self, index: int, entries: tuple[int, ...]) -> None:
        if self._stream is not None and index + 1 < len(self._entries):
            following = self._entries[index + 1]
            if following != entries:
                self._prefetch(following)

    def _fetch(self, entries: tuple[int, ...]) -> list[Table]:
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != entries:
            return self._slices(entries)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ahead[2])
        _keep_for_stream(ahead[1], current)
        return ahead[1]

    def _prefetch(self, entries: tuple[int, ...]) -> None:
        with torch.cuda.stream(self._stream):
            ahead = self._slices(entries)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._ahead = (entries, ahead, event)

    def _slices(self, entries: tuple[int, ...]) -> list[Table]:
        """One entry of each table on the device, in the table's own type."""
        return [
            tuple((self._slice(k, entry), self._slice(v, entry)) for k, v in table)
            for table, entry in zip(self._tables, entries, strict=True)
        ]

    def _slice(self, part: Stored, entry: int) -> Stored:
        moved = [one[entry].to(self._device, non_blocking=True) for one in _tensors(part)]
        return _stored(moved)

    def _join(self, entries: list[Table]) -> ReferenceKVLayers:
        wide = [
            tuple((_unpack(k, self._dtype), _unpack(v, self._dtype)) for k, v in entry)
            for entry in entries
        ]
        if len(wide) == 1:
            return wide[0]
        return tuple(
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
            for layer in zip(*wide, strict=True)
        )


def _unpack(part: Stored, dtype: torch.dtype) -> Tensor:
    if isinstance(part, Scaled):
        return (part.values.float() * part.scale).to(dtype)
    return part.to(dtype)


def _unpack_into(buffer: Tensor, part: Stored) -> None:
    """The same numbers, rounded once: the narrow types are exact in every type of a buffer."""
    buffer.copy_(_values(part), non_blocking=True)
    if isinstance(part, Scaled):
        buffer.mul_(part.scale)


def _values(part: Stored) -> Tensor:
    return part.values if isinstance(part, Scaled) else part


def _keep_for_stream(tables: Iterable[Table], stream: Any) -> None:
    """Memory that another stream allocated is not given away while this one reads it."""
    for table in tables:
        for layer in table:
            for tensor in (one for part in layer for one in _tensors(part)):
                if tensor.is_cuda:
                    tensor.record_stream(stream)


def _tensors(part: Stored) -> list[Tensor]:
    return [part.values, part.scale] if isinstance(part, Scaled) else [part]


def _stored(tensors: list[Tensor]) -> Stored:
    return tensors[0] if len(tensors) == 1 else Scaled(*tensors)


def _is_on_host(table: Table, device: str = "cuda") -> bool:
    """The table is to be streamed to a device that is not the host."""
    return device != "cpu" and _values(table[0][0]).device.type == "cpu"


def _to_numpy(part: Stored) -> HostArray:
    values, *scale = (one.cpu().contiguous() for one in _tensors(part))
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    elif values.dtype == torch.float8_e4m3fn:
        values = values.view(torch.uint8)
    return HostArray(values.numpy(), scale[0].numpy() if scale else None)


def _writable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """PyTorch warns of read-only arrays; tables are never written to, so few are copied."""
    return array if array.flags.writeable else array.copy()
