"""Weights kept as eight-bit differences from others: what a student or a control adds to a pair.

A file of weights is stored as what has to be added to another one: of the same tensors, as a
student's, or of some of them and of others that begin as zeros, as a control's. Matrices and
filters keep eight bits a number and a scale for each row, everything smaller is kept whole. The sum
is made in float32 and rounded once, and its layout follows from the two files; so every machine
makes the same bytes, which a manifest may name. Knows files, and no models.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import CheckpointError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.files.tensor_file import Tensor, read_tensor_file, write_tensor_file

SUFFIX = ".difference.safetensors"
"""In place of `.safetensors` in the name of the file that is stored so."""

_SCALE = ".scale"
_LEVELS = 127
_TYPES: dict[str, Any] = {"F16": np.float16, "F32": np.float32}
_MAX_BYTES = 1 << 30

_Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class _Weights:
    """A file of floating-point tensors.

    Attributes:
        head: All bytes ahead of the tensors.
        places: First and last byte behind `head`, shape and type, by name.
        data: uint8, the rest of the file.
    """

    head: bytes
    places: dict[str, tuple[int, int, tuple[int, ...], str]]
    data: npt.NDArray[np.uint8]

    @property
    def kinds(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of all tensors."""
        return {name: place[2:] for name, place in self.places.items()}

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A view of one tensor."""
        begin, end, shape, kind = self.places[name]
        found: npt.NDArray[Any] = self.data[begin:end].view(_TYPES[kind]).reshape(shape)
        return found


def write_difference(base: Path, changed: Path, output: Path) -> None:
    """Store a file of weights as its difference from another one.

    What is lost is at most a 254th of the largest difference in a row. What is equal takes no room.

    Args:
        base: A safetensors file, of float16 or float32.
        changed: One with the same tensors.
        output: The difference, to be made whole with `apply_difference`.

    Raises:
        CheckpointError: A file is damaged, holds other types, or the tensors are not the same.
        StorageError: The output cannot be written.
    """
    ours, theirs = _read(base), _read(changed)
    if ours.kinds != theirs.kinds:
        raise CheckpointError(
            f"{changed} has other tensors than {base}, expected the same names, shapes and types; "
            "give the student of this pair",
            changed,
        )
    stored: dict[str, Tensor] = {}
    for name in ours.places:
        before, after = ours.tensor(name), theirs.tensor(name)
        if not np.array_equal(before, after):
            stored |= _stored(name, ours.places[name][3], before, after)
    write_tensor_file(output, stored, {"kind": "difference"})


def write_branch(base: Path, branch: Path, output: Path) -> None:
    """Store weights that began as some of another file's, and as zeros where that has none.

    Args:
        base: A safetensors file of one type, float16 or float32.
        branch: One of that type; tensors of the same name have the same shape.
        output: The difference, to be made whole with `apply_difference`.

    Raises:
        CheckpointError: A file is damaged, or a tensor has another shape or type than in `base`.
        StorageError: The output cannot be written.
    """
    ours, theirs = _read(base), _read(branch)
    kind = next(iter(ours.kinds.values()))[1]
    stored: dict[str, Tensor] = {}
    for name, found in theirs.kinds.items():
        if found != ours.kinds.get(name, (found[0], kind)):
            raise CheckpointError(
                f"{branch} holds {name!r} of another shape or type than {base}; give a control of "
                "this pair, in its type",
                branch,
            )
        before = ours.tensor(name) if name in ours.places else None
        stored |= _stored(name, kind, before, theirs.tensor(name))
    write_tensor_file(output, stored, {"kind": "branch", "dtype": kind})


def _stored(name: str, kind: str, before: _Array | None, after: _Array) -> dict[str, Tensor]:
    """One tensor as it is kept: whole, or as levels with a scale for each row."""
    if after.ndim < 2:
        return {name: Tensor(kind, after.copy())}
    start = np.float32(0) if before is None else before.astype(np.float32)
    difference = (after.astype(np.float32) - start).reshape(len(after), -1)
    scale = np.abs(difference).max(axis=1) / np.float32(_LEVELS)
    steps = np.rint(difference / np.where(scale > 0, scale, np.float32(1))[:, None])
    levels = np.clip(steps, -_LEVELS, _LEVELS).astype(np.int8)
    return {name: Tensor("I8", levels.reshape(after.shape)), name + _SCALE: Tensor("F32", scale)}


def apply_difference(base: Path, difference: Path, output: Path) -> None:
    """Make a file of weights whole again; `base` as for `write_difference` and `write_branch`.

    Raises:
        CheckpointError: A file is damaged, or they do not belong together.
        StorageError: The output cannot be written.
    """
    ours = _read(base)
    stored = read_tensor_file(difference, max_bytes=_MAX_BYTES)
    new_kind = stored.metadata.get("dtype", "")  # of tensors that the base has not: a branch's
    whole: dict[str, Tensor] = {}
    for name, tensor in stored.tensors.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored.tensors:
            continue
        before = ours.tensor(name) if name in ours.places else None
        kind = new_kind if before is None else ours.kinds[name][1]
        if kind not in _TYPES or (before is not None and before.shape != tensor.array.shape):
            raise CheckpointError(
                f"{difference} holds {name!r} of shape {list(tensor.array.shape)}, which {base} "
                "does not have; install the package again",
                difference,
            )
        found = _whole(tensor, stored.tensors.get(name + _SCALE), before, kind)
        if found is None:
            raise CheckpointError(
                f"{difference} holds {name!r} as {tensor.kind} without what belongs to it; install "
                "the package again",
                difference,
            )
        whole[name] = found
    if new_kind:
        write_tensor_file(output, whole, {"format": "pt"})
        return
    data = ours.data.copy()
    for name, tensor in whole.items():
        begin, end, _, _ = ours.places[name]
        data[begin:end] = np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8)
    atomic_write_bytes(output, ours.head + data.tobytes())


def _whole(tensor: Tensor, scale: Tensor | None, before: _Array | None, kind: str) -> Tensor | None:
    """What `_stored` kept, in its own type again; None: something is missing."""
    if tensor.kind == kind and scale is None:
        return tensor
    if tensor.kind != "I8" or scale is None or scale.array.shape != tensor.array.shape[:1]:
        return None
    rows = tensor.array.reshape(len(tensor.array), -1).astype(np.float32)
    start = np.float32(0) if before is None else before.reshape(rows.shape).astype(np.float32)
    added = (start + rows * scale.array[:, None]).astype(_TYPES[kind])
    return Tensor(kind, added.reshape(tensor.array.shape))


def _read(path: Path) -> _Weights:
    """A safetensors file that a library wrote, so it holds no digest of ours."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {describe_os_error(error)}", path) from error
    try:
        (length,) = struct.unpack_from("<Q", content)
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        data = np.frombuffer(content, np.uint8, offset=8 + length)
        places = {name: _place(entry) for name, entry in header.items() if name != "__metadata__"}
        fits = all(
            0 <= begin <= end <= len(data)
            and end - begin == math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
            for begin, end, shape, kind in places.values()
        )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file of float16 or float32 ({error}); copy it again", path
        ) from error
    if not fits:
        raise CheckpointError(f"{path} is truncated; copy it again", path)
    return _Weights(content[: 8 + length], places, data)


def _place(entry: dict[str, Any]) -> tuple[int, int, tuple[int, ...], str]:
    begin, end = map(int, entry["data_offsets"])
    return begin, end, tuple(map(int, entry["shape"])), str(entry["dtype"])


def whole_name(difference: Path) -> Path:
    """The file that a difference is made whole into, beside it."""
    return difference.with_name(difference.name.removesuffix(SUFFIX) + ".safetensors")
