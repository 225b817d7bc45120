"""Reference tables of the OpenVINO backend: memory of numpy that models read where it lies.

A table in the type of the arithmetic is read as it is. Any other (a narrower type, or one that is
to stay packed) is a `HostTable`, whose entries are unpacked when a step reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.backends.host_table import (
    NUMPY_TYPE,
    HostArray,
    HostTable,
    LayerShape,
    PackedRows,
    TableDtype,
    check_table,
    named_layers,
    unpack,
)
from bootpig_rt.backends.openvino.launch import AnyArray


@dataclass(frozen=True, eq=False)
class Table:
    """A table as the models read it.

    Attributes:
        layers: `k_0`, `v_0`, ... -> [E * R, H, M, D], entry by entry; bfloat16 as its bits.
        entries: E.
        references: R.
        dtype: Of the numbers.
    """

    layers: Mapping[str, AnyArray]
    entries: int
    references: int
    dtype: TableDtype

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(int(layer.nbytes) for layer in self.layers.values())


class TableWriter:
    """Takes the output of a reference pass launch by launch.

    Args:
        shapes: H, M, D of each layer.
        entries: E.
        references: R.
        dtype: How the table is to be kept.
        native: Type of the arithmetic, which launches write.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        entries: int,
        references: int,
        dtype: TableDtype,
        native: TableDtype,
    ) -> None:
        """Make room for all of it."""
        self._entries, self._references, self._native = entries, references, native
        self._shapes = named_layers(shapes)
        self._packed: PackedRows | None = None
        self._whole: dict[str, AnyArray] = {}
        if dtype == native:
            self._whole = self._room(entries * references)
        else:
            self._packed = PackedRows(shapes, entries=entries, references=references, dtype=dtype)

    def _room(self, rows: int) -> dict[str, AnyArray]:
        dtype = NUMPY_TYPE[self._native]
        return {name: np.empty((rows, *shape), dtype) for name, shape in self._shapes.items()}

    def room(self, rows: slice) -> dict[str, AnyArray]:
        """Memory for the outputs of a launch of some rows: the table's own where that fits."""
        if self._packed is not None:
            return self._room(rows.stop - rows.start)
        return {name: whole[rows] for name, whole in self._whole.items()}

    def take(self, rows: slice, made: Mapping[str, AnyArray]) -> None:
        """Check what a launch wrote into `room`, and keep it.

        Raises:
            NumericalError: NaN or Inf, or numbers that the type cannot hold.
        """
        if self._packed is not None:
            numbers = {name: unpack(part, None, self._native) for name, part in made.items()}
            self._packed.put(rows, numbers)
            return
        for values in made.values():
            check_table(values.view(bfloat16) if values.dtype == np.uint16 else values, "table")

    def finish(self) -> Table | HostTable:
        """The table."""
        if self._packed is not None:
            return self._packed.table()
        return Table(self._whole, self._entries, self._references, self._native)


def download(table: Table | HostTable) -> HostTable:
    """A table as arrays of the host, in the same type and the same memory."""
    if isinstance(table, HostTable):
        return table
    arrays = (HostArray(layer) for layer in table.layers.values())
    return HostTable.of_rows(table.dtype, arrays, table.entries, table.references)


def upload(table: HostTable, native: TableDtype, *, is_resident: bool) -> Table | HostTable:
    """A table of the host as `data` of a batch; the host is the device, so nothing is copied.

    Args:
        table: The arrays.
        native: Type of the arithmetic; tables in another type are unpacked step by step.
        is_resident: It is to lie there unpacked.
    """
    if not is_resident or table.dtype != native:
        return table
    entries, references = table.shapes()[0][:2]
    layers = {
        f"{kind}_{index}": np.ascontiguousarray(part.values).reshape(-1, *part.values.shape[2:])
        for index, layer in enumerate(table.layers)
        for kind, part in zip("kv", layer, strict=True)
    }
    return Table(layers, entries, references, table.dtype)


def join(tables: Sequence[Table]) -> dict[str, AnyArray]:
    """Several tables in a row, as the models read them: [sum of E * R, H, M, D]."""
    return {
        name: np.concatenate([table.layers[name] for table in tables]) for name in tables[0].layers
    }


class StreamedTables:
    """One entry of each table, unpacked: those that the current step reads.

    Args:
        tables: Of the subjects of a batch, of any kind.
        entry_of_step: int64 [S, T].
        native: Type of the arithmetic.

    Attributes:
        layers: `k_0`, `v_0`, ... -> [sum of R, H, M, D], always the same memory.
    """

    def __init__(
        self, tables: Sequence[Table | HostTable], entry_of_step: AnyArray, native: TableDtype
    ) -> None:
        """Make room for one entry of each table."""
        self._tables = [download(table) for table in tables]
        self._entries = entry_of_step
        self._native = native
        self._now: tuple[int, ...] | None = None
        rows = sum(table.shapes()[0][1] for table in self._tables)
        self.layers: dict[str, AnyArray] = {
            f"{kind}_{index}": np.empty((rows, *shape[2:]), NUMPY_TYPE[native])
            for index, shape in enumerate(self._tables[0].shapes())
            for kind in "kv"
        }

    def load(self, step: int) -> None:
        """Unpack the entries of a step, unless they are there already."""
        entries = tuple(self._entries[:, step].tolist())
        if entries == self._now:
            return
        row = 0
        for table, entry in zip(self._tables, entries, strict=True):
            for index, layer in enumerate(table.entry(entry)):
                for kind, numbers in zip("kv", layer, strict=True):
                    whole = self.layers[f"{kind}_{index}"]
                    whole[row : row + len(numbers)] = _native(numbers, self._native)
            row += table.shapes()[0][1]
        self._now = entries


def _native(numbers: FloatArray, native: TableDtype) -> AnyArray:
    return numbers.astype(bfloat16).view(np.uint16) if native == "bfloat16" else numbers
