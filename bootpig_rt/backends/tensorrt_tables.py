"""Reference tables of the TensorRT backend: on the device in the engines' own type, or streamed.

Engines read keys and values in one type. A table that is to be kept in a narrower one is rounded to
it and lies on the device in the engines' type: it gives the numbers of that type, and saves memory
only where it is stored or streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.cuda_memory import DeviceArray
from bootpig_rt.errors import NumericalError
from bootpig_rt.table_storage import (
    HostTable,
    TableDtype,
    check_host_table,
    pack_table,
    unpack,
)

AnyArray = npt.NDArray[Any]


class Place(Protocol):
    """Where tables go: `Cuda`, or a stand-in without a device."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An array on the device."""

    def upload(self, array: AnyArray, dtype: Any = None) -> DeviceArray:
        """A copy of a host array."""

    def download(self, source: DeviceArray) -> AnyArray:
        """A copy of a device array."""

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """Device -> device."""

    def copy_in(self, host: AnyArray, target: DeviceArray) -> None:
        """Host -> device."""


@dataclass(frozen=True, eq=False)
class Table:
    """Reference keys and values of one subject.

    Attributes:
        entries: E.
        references: R.
        dtype: Whose numbers they are.
        layers: `k_0`, `v_0`, ... -> [E * R, H, M, D] on the device, entry by entry; empty when
            streamed.
        host: The numbers in `dtype`; None where `layers` holds exactly these.
    """

    entries: int
    references: int
    dtype: TableDtype
    layers: Mapping[str, DeviceArray]
    host: HostTable | None

    @property
    def is_resident(self) -> bool:
        """On the device as a whole."""
        return bool(self.layers)

    @property
    def size_bytes(self) -> int:
        """Of the device, or of the host for a table that is streamed."""
        if self.is_resident or self.host is None:
            return sum(layer.nbytes for layer in self.layers.values())
        return self.host.nbytes


def is_exact(dtype: TableDtype, native: str) -> bool:
    """Whether numbers of the engines' type can be kept in `dtype` and read back unchanged."""
    return dtype == native or dtype == "float32"


def finish_table(
    place: Place,
    layers: dict[str, DeviceArray],
    *,
    entries: int,
    references: int,
    dtype: TableDtype,
) -> Table:
    """A table from what the reference pass left on the device.

    Numbers that are no numbers go through the U-Net to its last layer, which is looked at. Where
    the table is rounded to another type, all of it is.

    Raises:
        NumericalError: NaN or Inf.
    """
    names = list(layers)
    native = str(layers[names[0]].dtype)
    if is_exact(dtype, native):
        for name in names[-2:]:
            if not np.isfinite(place.download(layers[name])).all():
                raise NumericalError(
                    "NaN or Inf in the reference table, expected finite numbers; check the "
                    "weights, or build with --precision float32"
                )
        return Table(entries, references, dtype, layers, None)
    host = _to_host(place, layers, entries, references, dtype)
    for name, array in _flat_layers(host, native).items():
        place.copy_in(array, layers[name])
    return Table(entries, references, dtype, layers, host)


def download_table(place: Place, table: Table) -> HostTable:
    """A table as numpy arrays in its own type."""
    if table.host is not None:
        return table.host
    return _to_host(place, table.layers, table.entries, table.references, table.dtype)


def upload_table(place: Place, host: HostTable, native: str, *, is_resident: bool) -> Table:
    """A table of numpy arrays, as a whole on the device or to be streamed entry by entry."""
    check_host_table(host)
    entries, references = host.shapes()[0][:2]
    if not is_resident:
        return Table(entries, references, host.dtype, {}, host)
    layers = {
        name: place.upload(array, np.dtype(native))
        for name, array in _flat_layers(host, native).items()
    }
    kept = None if host.dtype == native else host
    return Table(entries, references, host.dtype, layers, kept)


class TableWindow:
    """One entry of each table in bound arrays, changed from step to step.

    Used where a table is streamed; otherwise whole tables are bound and nothing is copied.

    Args:
        place: The device.
        tables: Of the subjects of a batch.
        native: Type of the engines.
        shapes: `k_0`, `v_0`, ... -> H, M, D.
    """

    def __init__(
        self,
        place: Place,
        tables: Sequence[Table],
        native: str,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Allocate room for one entry of each."""
        self._place = place
        self._tables = tuple(tables)
        self._native = native
        self._now: list[int | None] = [None] * len(self._tables)
        rows = sum(table.references for table in self._tables)
        self.arrays = {name: place.empty((rows, *shape), native) for name, shape in shapes.items()}

    def show(self, entries: Sequence[int]) -> None:
        """Copy the entries that a step reads, where they are not there yet."""
        row = 0
        for number, (table, entry) in enumerate(zip(self._tables, entries, strict=True)):
            if self._now[number] != entry:
                self._copy(table, entry, row)
                self._now[number] = entry
            row += table.references

    def _copy(self, table: Table, entry: int, row: int) -> None:
        if table.is_resident:
            for name, layer in table.layers.items():
                size = table.references * layer.row_bytes
                target = self.arrays[name].address + row * layer.row_bytes
                self._place.copy(layer.address + entry * size, target, size)
            return
        assert table.host is not None
        for index, pair in enumerate(table.host.entry(entry)):
            for kind, numbers in zip("kv", pair, strict=True):
                whole = self.arrays[f"{kind}_{index}"]
                piece = self._place.upload(numbers, self._native)
                self._place.copy(piece.address, whole.address + row * whole.row_bytes, piece.nbytes)


def _to_host(
    place: Place,
    layers: Mapping[str, DeviceArray],
    entries: int,
    references: int,
    dtype: TableDtype,
) -> HostTable:
    arrays = {
        name: place.download(layer)
        .astype(np.float32)
        .reshape(entries, references, *layer.shape[1:])
        for name, layer in layers.items()
    }
    count = len(arrays) // 2
    return pack_table([(arrays[f"k_{i}"], arrays[f"v_{i}"]) for i in range(count)], dtype)


def _flat_layers(host: HostTable, native: str) -> dict[str, AnyArray]:
    """`k_0`, `v_0`, ... -> [E * R, H, M, D] in the engines' type."""
    flat: dict[str, AnyArray] = {}
    for index, layer in enumerate(host.layers):
        for kind, part in zip("kv", layer, strict=True):
            numbers = unpack(part.values, part.scale, host.dtype)
            flat[f"{kind}_{index}"] = np.ascontiguousarray(
                numbers.reshape(-1, *numbers.shape[2:]), dtype=native
            )
    return flat
