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
    NUMPY_TYPE,
    HostArray,
    HostTable,
    LayerShape,
    TableDtype,
    check_table,
    pack,
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


def layer_names(num_layers: int) -> list[str]:
    """`k_0`, `v_0`, `k_1`, ...: names in the graphs."""
    return [f"{kind}_{layer}" for layer in range(num_layers) for kind in "kv"]


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
        is_native = dtype == graph_type.name
        # On a GPU all of a table would cross to the host for it. Numbers that are no numbers go
        # through the U-Net to its last layer; what overflows in a projection alone, the check of
        # the finished latents finds.
        names = layer_names(len(shapes))
        self._looked_at = names if device == "cpu" else names[-2:]
        rows = entries * references
        self.into: dict[str, ort.OrtValue] | None = {} if is_native else None
        self._packed: dict[str, HostArray] = {}
        for layer, shape in enumerate(shapes):
            for name in (f"k_{layer}", f"v_{layer}"):
                if self.into is not None:
                    self.into[name] = empty((rows, *shape), graph_type, device)
                else:
                    self._packed[name] = _room(rows, shape, dtype)

    def take(self, rows: slice, made: Mapping[str, ort.OrtValue]) -> None:
        """Check what a launch made and keep it: in the graphs' own type it lies there already.

        Raises:
            NumericalError: NaN or Inf, or numbers that the type cannot hold.
        """
        if self.into is not None:
            for name in self._looked_at:
                check_table(made[name].numpy(), "table")
            return
        for name, whole in self._packed.items():
            part = pack(made[name].numpy().astype(np.float32)[np.newaxis], self._dtype)
            whole.values[rows] = part.values[0]
            if whole.scale is not None and part.scale is not None:
                whole.scale[rows] = part.scale[0]

    def finish(self) -> Table:
        """The table."""
        if self.into is not None:
            return DeviceTable(self.into, self._entries, self._references, self._dtype)
        lead = (self._entries, self._references)
        parts = [
            HostArray(
                part.values.reshape(*lead, *part.values.shape[1:]),
                None if part.scale is None else part.scale.reshape(*lead, *part.scale.shape[1:]),
            )
            for part in self._packed.values()
        ]
        return HostTable(self._dtype, tuple(zip(parts[::2], parts[1::2], strict=True)))


def _room(rows: int, shape: LayerShape, dtype: TableDtype) -> HostArray:
    values = np.empty((rows, *shape), NUMPY_TYPE[dtype])
    if dtype not in ("float8", "int8"):
        return HostArray(values)
    return HostArray(values, np.empty((rows, shape[0], 1, 1), np.float32))


def download(table: Table) -> HostTable:
    """A table as arrays of the host, in the same type."""
    if isinstance(table, HostTable):
        return table
    lead = (table.entries, table.references)
    parts = []
    for value in table.layers.values():
        array = value.numpy()
        if value.device_name() == "cpu":
            array = array.copy()  # a view does not keep what `to_device` made alive
        parts.append(HostArray(array.reshape(*lead, *array.shape[1:])))
    return HostTable(table.dtype, tuple(zip(parts[::2], parts[1::2], strict=True)))


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
    for name, part in zip(
        layer_names(len(table.layers)), (p for layer in table.layers for p in layer), strict=True
    ):
        flat = np.array(part.values, order="C").reshape(
            entries * references, *part.values.shape[2:]
        )
        layers[name] = to_device(flat, device)
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
        names = layer_names(len(self._tables[0].layers))
        shapes = [shape[2:] for shape in self._tables[0].shapes() for _ in "kv"]
        self.layers: dict[str, ort.OrtValue] = {
            name: empty((rows, *shape), graph_type, device)
            for name, shape in zip(names, shapes, strict=True)
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
