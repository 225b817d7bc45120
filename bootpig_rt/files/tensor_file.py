"""safetensors files in numpy: written all at once, read all at once, and checked before any use.

The format is a header of JSON and the bytes of the tensors. Nothing in such a file is ever run. It
is read here rather than by the library because a file from a stranger is checked in full, and what
is used later are the bytes that were checked: a mapped file could change or shrink under its user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import CheckpointError, describe_os_error, one_line, shown
from bootpig_rt.files.atomic import atomic_write

AnyArray = npt.NDArray[Any]

HEADER_LIMIT = 4 << 20
_CHUNK_BYTES = 1 << 20
_TYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "I8": np.int8,
    "U8": np.uint8,
}
_MAX_DIMS = 8


@dataclass(frozen=True)
class Tensor:
    """One array and the type that the file gives it.

    Attributes:
        kind: A name of the safetensors format, "F32" to "U8".
        array: In the numpy type of that name; bfloat16 and float8 as their bits.
    """

    kind: str
    array: AnyArray


@dataclass(frozen=True)
class TensorFile:
    """A file that was read.

    Attributes:
        path: Where it lies.
        metadata: Text by name.
        tensors: Parts of one array in memory.
        sha256: Over all of the above; it was checked.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of itself. Its bytes were not read, so it may be wrong.

    Attributes:
        metadata: Text by name.
        shapes: Of the tensors, by name.
        sizes_bytes: Of the tensors, by name.
    """

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    sizes_bytes: Mapping[str, int]


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that is whole or not there; the old one stays until then.

    The metadata gets `sha256`, over everything else in the header and the tensors' bytes.

    Raises:
        StorageError: Disk full, no permission, no such folder.
    """
    # The largest types first keeps every tensor aligned to its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].array.itemsize, name))
    header: dict[str, Any] = {}
    position = 0
    for name in names:
        array = tensors[name].array
        header[name] = {
            "dtype": tensors[name].kind,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    header["__metadata__"] = dict(metadata)
    digest = _digest_of_header(header)
    for name in names:
        digest.update(_bytes(tensors[name].array))
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header, ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            stream.write(_bytes(tensors[name].array))


def read_tensor_file(path: Path, *, max_bytes: int) -> TensorFile:
    """Read a file into memory and check its size, header, offsets and digest.

    Args:
        path: The file.
        max_bytes: A larger file is refused before it is read.

    Raises:
        CheckpointError: Missing, too large for the limit or for the memory, truncated, changed, or
            no such file at all.
    """
    with _opened(path, max_bytes) as (stream, header, data_bytes):
        metadata, written = _take_metadata(path, header)
        places = _places(path, header, data_bytes)
        kinds = {name: _shape(path, name, header[name], end - begin) for begin, end, name in places}
        digest = _digest_of_header({**header, "__metadata__": metadata})
        data = _read(path, stream, data_bytes, digest)
    if digest.hexdigest() != written:
        raise _damaged(path, "its bytes are not those that were written")
    tensors = {}
    for begin, end, name in places:
        kind, shape = kinds[name]
        tensors[name] = Tensor(kind, data[begin:end].view(_TYPES[kind]).reshape(shape))
    return TensorFile(path, metadata, tensors, written)


def read_tensor_header(path: Path, *, max_bytes: int) -> TensorHeader:
    """Read the header alone and check that it fits the size of the file.

    Args:
        path: The file.
        max_bytes: A larger file is refused.

    Raises:
        CheckpointError: Missing, too large, truncated, or no such file at all.
    """
    with _opened(path, max_bytes) as (_, header, data_bytes):
        metadata, _ = _take_metadata(path, header)
        places = _places(path, header, data_bytes)
    shapes = {name: _shape(path, name, header[name], end - begin)[1] for begin, end, name in places}
    return TensorHeader(metadata, shapes, {name: end - begin for begin, end, name in places})


@contextlib.contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[tuple[BinaryIO, dict[str, Any], int]]:
    """The file behind its header, the header, and how many bytes of tensors should follow."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            raise CheckpointError(f"{path} is not a file; give the file of a subject", path)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise CheckpointError(
                    f"{path} has {size} bytes, expected at most {max_bytes}; raise the limit if "
                    "you know where the file comes from",
                    path,
                )
            header, start = _read_header(path, stream, size)
            yield stream, header, size - start
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {describe_os_error(error)}", path) from error


def _read(path: Path, stream: BinaryIO, size: int, digest: Any) -> AnyArray:
    """The rest of a file, fed to a digest piece by piece while it is in the processor's cache."""
    try:
        data = np.empty(size, np.uint8)
    except MemoryError as error:
        raise CheckpointError(
            f"{path} holds {size} bytes of tensors, more than there is memory for; close other "
            "programs or keep tables in a smaller type",
            path,
        ) from error
    view, done = memoryview(data.data), 0
    while done < size:
        count = stream.readinto(view[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise _damaged(path, f"it ends {size - done} bytes early")
        digest.update(view[done : done + count])
        done += count
    return data


def _take_metadata(path: Path, header: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Take the metadata out of the header: its fields, and the digest among them."""
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "it has no metadata")
    return metadata, metadata.pop("sha256", "")


def _places(path: Path, header: dict[str, Any], data_bytes: int) -> list[tuple[int, int, str]]:
    """First and last byte and name of each tensor, in their order: side by side, to the end."""
    places = sorted((*_offsets(path, name, entry), name) for name, entry in header.items())
    expected = places[-1][1] if places else 0
    if expected != data_bytes:
        raise _damaged(
            path, f"{data_bytes} bytes of data, expected {expected}: it is truncated or too long"
        )
    position = 0
    for begin, end, name in places:
        if begin != position:
            raise _damaged(path, f"tensor {name!r} overlaps another or leaves a gap")
        position = end
    return places


def _read_header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    first = stream.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise _damaged(path, "it has no header of safetensors")
    text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    return header, 8 + length


def _digest_of_header(header: dict[str, Any]) -> Any:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode())


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    # What is unknown could be nested so deeply that it can be read, and not be written to a digest.
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name!r} has not dtype, shape and data_offsets alone")
    offsets = entry["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset >= 0 for offset in offsets)
        or offsets[0] > offsets[1]
    ):
        raise _damaged(path, f"tensor {name!r} has no offsets")
    return offsets[0], offsets[1]


def _shape(
    path: Path, name: str, entry: dict[str, Any], size_bytes: int
) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a tensor, which fit its bytes."""
    kind, shape = entry["dtype"], entry["shape"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise _damaged(path, f"tensor {name!r} is of type {shown(kind)}")
    width = np.dtype(_TYPES[kind]).itemsize
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(length) is int and length >= 0 for length in shape)
        or math.prod(shape) * width != size_bytes
        or math.prod(max(1, length) for length in shape) * width > sys.maxsize  # with a side of 0
    ):
        raise _damaged(path, f"tensor {name!r} has shape {shown(shape)} in {size_bytes} bytes")
    return kind, tuple(shape)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {one_line(why)}; make or copy it again", path)


def _bytes(array: AnyArray) -> memoryview:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)
