"""Reference tables as tensors of a file, alone in a store or inside a subject's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootpig_rt.backends.host_table import HostArray, HostTable, TableDtype, check_host_table
from bootpig_rt.errors import CheckpointError, NumericalError, ParameterError, one_line, shown
from bootpig_rt.files.tensor_file import (
    Tensor,
    read_tensor_file,
    read_tensor_header,
    write_tensor_file,
)
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable

FORMAT = "bootpig-rt table"
SCHEMA = "2"
_KINDS: dict[str, str] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8": "F8_E4M3",
    "int8": "I8",
}
_SCALED = ("float8", "int8")


def write_table(path: Path, saved: ReferenceTable) -> None:
    """Write one table, whole or not at all.

    Raises:
        StorageError: Disk full, no permission.
    """
    metadata = {"format": FORMAT, "schema": SCHEMA, "key": json.dumps(saved.key.to_dict())}
    write_tensor_file(path, table_tensors(saved.data, ""), metadata)


def read_table(path: Path, *, max_bytes: int) -> ReferenceTable:
    """Read one table and check all of it.

    Raises:
        CheckpointError: Damaged, of another version, or with NaN.
    """
    file = read_tensor_file(path, max_bytes=max_bytes)
    _check_kind(path, file.metadata)
    tensors = dict(file.tensors)
    saved = take_table(path, read_json_text(path, file.metadata, "key"), tensors, "")
    if tensors:
        name = shown(sorted(tensors)[0])
        raise CheckpointError(f"{path} holds {name}, which no table has", path)
    return saved


def read_table_key(path: Path, *, max_bytes: int) -> ReferenceKey:
    """What a table says that it was computed from; its numbers are not checked.

    Raises:
        CheckpointError: Damaged, or of another version.
    """
    metadata = read_tensor_header(path, max_bytes=max_bytes).metadata
    _check_kind(path, metadata)
    try:
        return ReferenceKey.from_dict(read_json_text(path, metadata, "key"))
    except ParameterError as error:
        text = f"{path} has no key: {one_line(str(error))}; delete it"
        raise CheckpointError(text, path) from error


def table_tensors(table: HostTable, prefix: str) -> dict[str, Tensor]:
    """The arrays of a table by name: `0.k`, `0.v`, `0.k_scale`, `0.v_scale`, `1.k`..."""
    tensors = {}
    for index, layer in enumerate(table.layers):
        for name, part in zip(("k", "v"), layer, strict=True):
            tensors[f"{prefix}{index}.{name}"] = Tensor(_KINDS[table.dtype], part.values)
            if part.scale is not None:
                tensors[f"{prefix}{index}.{name}_scale"] = Tensor("F32", part.scale)
    return tensors


def take_table(path: Path, key: object, tensors: dict[str, Tensor], prefix: str) -> ReferenceTable:
    """Take the tensors of one table out of those of a file, and check them.

    Raises:
        CheckpointError: A tensor is missing, of the wrong type or shape, or has NaN.
    """
    try:
        read = ReferenceKey.from_dict(key)
        layers: list[tuple[HostArray, HostArray]] = []
        while f"{prefix}{len(layers)}.k" in tensors:
            name = f"{prefix}{len(layers)}"
            k, v = (_take(read, tensors, f"{name}.{part}") for part in ("k", "v"))
            if k.values.shape != v.values.shape:
                raise ParameterError(f"{name}: keys and values differ in shape")
            layers.append((k, v))
        if not layers:
            raise ParameterError("it has no layer")
        table = HostTable(read.dtype, tuple(layers))
        check_host_table(table)
    except (ParameterError, NumericalError) as error:
        raise CheckpointError(
            f"{path} holds a damaged reference table: {one_line(str(error))}; encode the subject "
            "again",
            path,
        ) from error
    return ReferenceTable.on_host(read, table)


def read_json_text(path: Path, metadata: Mapping[str, str], name: str) -> Any:
    """Parse one field of the metadata.

    Raises:
        CheckpointError: Missing or no JSON.
    """
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has no field {name!r}; make it again", path) from error


def _check_kind(path: Path, metadata: Mapping[str, str]) -> None:
    found = (metadata.get("format"), metadata.get("schema"))
    if found != (FORMAT, SCHEMA):
        text = f"{path} is {shown(found)}, expected {(FORMAT, SCHEMA)}; delete it"
        raise CheckpointError(text, path)


def _take(key: ReferenceKey, tensors: dict[str, Tensor], name: str) -> HostArray:
    dtype: TableDtype = key.dtype
    values = _pop(tensors, name, _KINDS[dtype])
    expected = (len(key.timesteps), key.num_references)
    if values.ndim != 5 or values.shape[:2] != expected or 0 in values.shape:
        raise ParameterError(f"{name} has shape {list(values.shape)}, expected {expected} x H M D")
    if dtype not in _SCALED:
        return HostArray(values)
    scale = _pop(tensors, f"{name}_scale", "F32")
    if scale.shape != (*values.shape[:3], 1, 1):
        raise ParameterError(f"the scales of {name} have shape {list(scale.shape)}")
    return HostArray(values, scale)


def _pop(tensors: dict[str, Tensor], name: str, kind: str) -> Any:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.kind != kind:
        got = "missing" if tensor is None else tensor.kind
        raise ParameterError(f"tensor {name!r} is {got}, expected {kind}")
    return tensor.array
