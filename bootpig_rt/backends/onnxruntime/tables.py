"""Reference tables of the ONNX Runtime backend.

A table in the type that the graphs read lies on the device, flat, and is bound as it is. Any other
(a narrower type, or one that is to stay on the host) is a `HostTable`, whose entries are unpacked
when a step reads them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.cuda.memory import Cuda
from bootpig_rt.backends.host_table import (
    HostArray,
    HostTable,
    LayerShape,
    PackedRows,
    TableDtype,
    check_table,
)
from bootpig_rt.backends.onnxruntime.sessions import NUMPY_TYPE as GRAPH_TYPE
from bootpig_rt.backends.onnxruntime.sessions import empty, to_device
from bootpig_rt.errors import BackendUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """A table as the graphs read it.

    Attributes:
        layers: `k_0`, `v_0`, ... -> [E * R, H, M, D], entry by entry.
        entries: E.
        references: R.
        dtype: Of the numbers.
    """

    layers: dict[str, ort.OrtValue]
    entries: int
    references: int
    dtype: TableDtype

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(int(value.tensor_size_in_bytes()) for value in self.layers.values())


Table = DeviceTable | HostTable


class TableWriter:
    """Takes the output of a reference pass launch by launch.

    Args:
        shapes: H, M, D of each layer.
        entries: E.
        references: R.
        dtype: How the table is to be kept.
        graph_type: What the graphs read and write.
        device: `cpu` or `cuda:N`.

    Attributes:
        into: Arrays that a launch may write its rows into: `k_0`, `v_0`, ... -> [E * R, H, M, D].
            None for a table in another type than the graphs'.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        entries: int,
        references: int,
        dtype: TableDtype,
        graph_type: np.dtype[Any],
        device: str,
    ) -> None:
        """Make room for all of it."""
        self._entries, self._references, self._dtype = entries, references, dtype
        # On a GPU all of a table would cross to the host for it. Numbers that are no numbers go
        # through the U-Net to its last layer; what overflows in a projection alone, the check of
        # the finished latents finds.
        layers = {f"{kind}_{i}": shape for i, shape in enumerate(shapes) for kind in "kv"}
        self._looked_at = list(layers) if device == "cpu" else list(layers)[-2:]
        self.into: dict[str, ort.OrtValue] | None = None
        if dtype == graph_type.name:
            rows = entries * references
            self.into = {
                name: empty((rows, *shape), graph_type, device) for name, shape in layers.items()
            }
        else:
            self._packed = PackedRows(shapes, entries=entries, references=references, dtype=dtype)

    def take(self, rows: slice, made: Mapping[str, ort.OrtValue]) -> None:
        """Check what a launch made and keep it: in the graphs' own type it lies there already.

        Raises:
            NumericalError: NaN or Inf, or numbers that the type cannot hold.
        """
        if self.into is not None:
            for name in self._looked_at:
                check_table(made[name].numpy(), "table")
            return
        self._packed.put(rows, {name: one.numpy().astype(np.float32) for name, one in made.items()})

    def finish(self) -> Table:
        """The table."""
        if self.into is None:
            return self._packed.table()
        return DeviceTable(self.into, self._entries, self._references, self._dtype)


def download(table: Table) -> HostTable:
    """A table as arrays of the host, in the same type."""
    if isinstance(table, HostTable):
        return table
    arrays = [value.numpy() for value in table.layers.values()]
    if next(iter(table.layers.values())).device_name() == "cpu":
        arrays = [array.copy() for array in arrays]  # a view keeps nothing of `to_device` alive
    return HostTable.of_rows(table.dtype, map(HostArray, arrays), table.entries, table.references)


def upload(table: HostTable, graph_type: np.dtype[Any], device: str, *, is_resident: bool) -> Table:
    """A table of the host as `data` of a batch.

    Args:
        table: The arrays.
        graph_type: What the graphs read; tables in another type stay on the host.
        device: `cpu` or `cuda:N`.
        is_resident: Copy it to the device as a whole.
    """
    if not is_resident or table.dtype != graph_type.name:
        return table
    entries, references = table.shapes()[0][:2]
    layers: dict[str, ort.OrtValue] = {}
    for index, layer in enumerate(table.layers):
        for kind, part in zip("kv", layer, strict=True):
            flat = np.array(part.values, order="C").reshape(-1, *part.values.shape[2:])
            layers[f"{kind}_{index}"] = to_device(flat, device)
    return DeviceTable(layers, entries, references, table.dtype)


def join(tables: Sequence[DeviceTable], device: str) -> dict[str, ort.OrtValue]:
    """Several tables in a row, as the graphs read them: [sum of E * R, H, M, D].

    On a GPU copied there by `cuda-python`, which the extra `gpu` installs; without it, or where it
    does not go with the driver, through the host.
    """
    cuda = None if device == "cpu" else _cuda(int(device.partition(":")[2]))
    joined = {}
    for name in tables[0].layers:
        values = [table.layers[name] for table in tables]
        if cuda is None:
            joined[name] = to_device(np.concatenate([value.numpy() for value in values]), device)
        else:
            joined[name] = copied_in_a_row(values, device, cuda)
    return joined


def copied_in_a_row(values: Sequence[ort.OrtValue], device: str, cuda: Any) -> ort.OrtValue:
    """One array of several, copied on the device: what ONNX Runtime launched there has ended."""
    first = values[0]
    rows = sum(value.shape()[0] for value in values)
    whole = empty((rows, *first.shape()[1:]), GRAPH_TYPE[first.data_type()], device)
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


class StreamedTables:
    """One entry of each table on the device: those that the current step reads.

    ONNX Runtime has no copy from the host that returns ahead of its end, so a step waits for them.

    Args:
        tables: Of the subjects of a batch, of any kind.
        entry_of_step: int64 [S, T].
        graph_type: What the graphs read.
        device: `cpu` or `cuda:N`.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        entry_of_step: np.ndarray[Any, Any],
        graph_type: np.dtype[Any],
        device: str,
    ) -> None:
        """Make room for one entry of each table."""
        on_host = {id(table): download(table) for table in tables}  # each once
        self._tables = [on_host[id(table)] for table in tables]
        self._entries = entry_of_step
        self._graph_type = graph_type
        self._now: tuple[int, ...] | None = None
        rows = sum(table.shapes()[0][1] for table in self._tables)
        self.layers: dict[str, ort.OrtValue] = {
            f"{kind}_{index}": empty((rows, *shape[2:]), graph_type, device)
            for index, shape in enumerate(self._tables[0].shapes())
            for kind in "kv"
        }

    def load(self, step: int) -> None:
        """Unpack the entries of a step, unless they are there already."""
        entries = tuple(self._entries[:, step].tolist())
        if entries == self._now:
            return
        unpacked = [t.entry(e) for t, e in zip(self._tables, entries, strict=True)]
        for layer, parts in enumerate(zip(*unpacked, strict=True)):
            for kind, arrays in zip("kv", zip(*parts, strict=True), strict=True):
                joined = np.concatenate(arrays).astype(self._graph_type, copy=False)
                self.layers[f"{kind}_{layer}"].update_inplace(np.ascontiguousarray(joined))
        self._now = entries
