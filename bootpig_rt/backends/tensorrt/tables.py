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

from bootpig_rt.backends.cuda.memory import DeviceArray, Event, PinnedArray, aligned
from bootpig_rt.backends.host_table import (
    HostTable,
    TableDtype,
    check_host_table,
    pack_table,
    unpack,
    write_entry,
)
from bootpig_rt.errors import NumericalError

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

    def pinned(self, nbytes: int) -> PinnedArray:
        """Host memory to copy ahead from."""

    def event(self) -> Event:
        """A point in the order of a stream."""

    def copy_ahead(self, source: int, target: int, nbytes: int) -> None:
        """Pinned host memory -> device, beside what runs."""

    def mark(self, event: Event, *, ahead: bool) -> None:
        """Reached when all before it on the stream is done."""

    def hold(self, event: Event, *, ahead: bool) -> None:
        """What comes after on the stream waits for the event."""

    def wait_for(self, event: Event) -> None:
        """The host waits for an event."""


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


@dataclass(frozen=True)
class _Piece:
    """Keys or values of one layer of one streamed slot.

    Attributes:
        slot: Of the batch.
        layer: Of the table.
        kind: 0 for keys, 1 for values.
        offset: Of the first byte, in pinned memory and in that on the device.
        nbytes: Of one entry.
        shape: [R, H, M, D].
        target: Address in the window.
    """

    slot: int
    layer: int
    kind: int
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    target: int


class TableWindow:
    """One entry of each table in bound arrays, changed from step to step.

    Used where a table is streamed; otherwise whole tables are bound and nothing is copied. What the
    next step reads is unpacked into pinned memory and copied to the device while a step runs; the
    step after it begins with a copy on the device. Two pieces of pinned memory take turns, so that
    one is filled while the other is read.

    Args:
        place: The device.
        tables: One for each slot of a batch.
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
        self._native = np.dtype(native)
        self._now: list[int | None] = [None] * len(self._tables)
        rows = sum(table.references for table in self._tables)
        self.arrays = {name: place.empty((rows, *shape), native) for name, shape in shapes.items()}
        self._pieces = self._lay_out()
        if self._pieces:
            size = self._pieces[-1].offset + aligned(self._pieces[-1].nbytes)
            self._pinned = tuple(place.pinned(size) for _ in range(2))
            self._sent = tuple(place.event() for _ in range(2))
            self._turn = 0
            self._fetched: list[int | None] = [None] * len(self._tables)
            self._staged = place.empty((size,), np.uint8)
            self._taken = place.event()

    def show(self, entries: Sequence[int]) -> None:
        """Put the entries that a step reads into the bound arrays, where they are not there yet."""
        self.fetch(entries)
        changed = {n for n, entry in enumerate(entries) if self._now[n] != entry}
        row = 0
        for number, (table, entry) in enumerate(zip(self._tables, entries, strict=True)):
            if number in changed and table.is_resident:
                self._copy(table, entry, row)
            row += table.references
        arrived = [piece for piece in self._pieces if piece.slot in changed]
        if arrived:
            self._place.hold(self._sent[1 - self._turn], ahead=False)
            for piece in arrived:
                source = self._staged.address + piece.offset
                self._place.copy(source, piece.target, piece.nbytes)
            self._place.mark(self._taken, ahead=False)
        self._now = list(entries)

    def fetch(self, entries: Sequence[int]) -> None:
        """Begin to bring the streamed entries of a coming step to the device.

        Returns when they are unpacked; the copies go on beside the step that runs.
        """
        wanted = {
            n
            for n, (table, entry) in enumerate(zip(self._tables, entries, strict=True))
            if not table.is_resident and entry not in (self._now[n], self._fetched[n])
        }
        pieces = [piece for piece in self._pieces if piece.slot in wanted]
        if not pieces:
            return
        pinned, sent = self._pinned[self._turn], self._sent[self._turn]
        self._place.wait_for(sent)  # copies of the turn before last
        for piece in pieces:
            host = self._tables[piece.slot].host
            assert host is not None
            memory = pinned.array[piece.offset : piece.offset + piece.nbytes]
            write_entry(
                host.layers[piece.layer][piece.kind],
                entries[piece.slot],
                host.dtype,
                memory.view(self._native).reshape(piece.shape),
            )
        self._place.hold(self._taken, ahead=True)  # the step before has copied what lies there
        for piece in pieces:
            source, target = pinned.address + piece.offset, self._staged.address + piece.offset
            self._place.copy_ahead(source, target, piece.nbytes)
        self._place.mark(sent, ahead=True)
        for slot in wanted:
            self._fetched[slot] = entries[slot]
        self._turn = 1 - self._turn

    def _copy(self, table: Table, entry: int, row: int) -> None:
        """From a table that lies on the device as a whole."""
        for name, layer in table.layers.items():
            size = table.references * layer.row_bytes
            target = self.arrays[name].address + row * layer.row_bytes
            self._place.copy(layer.address + entry * size, target, size)

    def _lay_out(self) -> list[_Piece]:
        """One entry of each streamed slot, one piece after another."""
        pieces: list[_Piece] = []
        row = offset = 0
        for slot, table in enumerate(self._tables):
            for name, whole in self.arrays.items() if not table.is_resident else ():
                kind, _, layer = name.partition("_")
                nbytes = table.references * whole.row_bytes
                pieces.append(
                    _Piece(
                        slot=slot,
                        layer=int(layer),
                        kind="kv".index(kind),
                        offset=offset,
                        nbytes=nbytes,
                        shape=(table.references, *whole.shape[1:]),
                        target=whole.address + row * whole.row_bytes,
                    )
                )
                offset += aligned(nbytes)
            row += table.references
        return pieces


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
