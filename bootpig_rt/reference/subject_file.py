"""The file of a subject: safetensors with a typed header, checked in full before it is used.

The header alone is enough to list files. A table that a file brings along cannot be checked against
its subject, so its key says which file it is from.

Light: latents, text states of the reference prompt and a preview. Full: reference tables as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.backends.host_table import TableDtype
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.files.tensor_file import (
    Tensor,
    read_tensor_file,
    read_tensor_header,
    write_tensor_file,
)
from bootpig_rt.reference.reference_table import ReferenceKey
from bootpig_rt.reference.subject import PREVIEW_PX, SavedTable, Subject
from bootpig_rt.reference.table_file import read_json_text, table_tensors, take_table

FORMAT = "bootpig-rt subject"
SCHEMA = "2"
_FIELDS: dict[str, type] = {
    "reference_prompt": str,
    "noise_seed": int,
    "pair_fingerprint": str,
    "pixels_sha256": str,
    "fingerprint": str,
    "tables": list,
}
_MAX_PROMPT_CHARS = 10_000
_MAX_REFERENCES = 1024
_MAX_TABLES = 64


@dataclass(frozen=True)
class TableFacts:
    """What a header says of one table.

    Attributes:
        dtype: How its numbers are kept.
        entries: E.
        bytes: Of its tensors.
    """

    dtype: TableDtype
    entries: int
    bytes: int


@dataclass(frozen=True)
class SubjectFacts:
    """What the header of a subject's file says.

    Attributes:
        fingerprint: Of the subject.
        form: `light` or `full`.
        reference_prompt: What the Reference U-Net is told.
        num_references: R.
        noise_seed: Of the reference noise.
        pair: Fingerprint of the pair that encoded it.
        latents: Shape [R, C, h, w].
        tables: That it brings along.
    """

    fingerprint: str
    form: str
    reference_prompt: str
    num_references: int
    noise_seed: int
    pair: str
    latents: tuple[int, ...]
    tables: tuple[TableFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "latents": list(self.latents),
            "tables": [asdict(table) for table in self.tables],
        }


def read_facts(path: Path, *, max_bytes: int) -> SubjectFacts:
    """Read the header of a subject's file. The rest is not read, and may be damaged.

    Raises:
        CheckpointError: Missing, truncated, too large, of another version or no subject's file.
    """
    header = read_tensor_header(path, max_bytes=max_bytes)
    _check_kind(path, header.metadata)
    values = _values(path, header.metadata)
    latents = header.shapes.get("latents", ())
    if len(latents) != 4:
        raise _wrong(path, f"its latents have shape {list(latents)}")
    tables = []
    for number, entry in enumerate(values["tables"]):
        try:
            key = ReferenceKey.from_dict(entry)
        except ParameterError as error:
            raise _wrong(path, f"{error}") from error
        sizes = [n for name, n in header.sizes_bytes.items() if name.startswith(f"table.{number}.")]
        tables.append(TableFacts(key.dtype, len(key.timesteps), sum(sizes)))
    return SubjectFacts(
        fingerprint=values["fingerprint"],
        form="full" if tables else "light",
        reference_prompt=values["reference_prompt"],
        num_references=latents[0],
        noise_seed=values["noise_seed"],
        pair=values["pair_fingerprint"],
        latents=latents,
        tables=tuple(tables),
    )


def save_subject(subject: Subject, path: str | PathLike[str], *, form: str) -> None:
    """Write a subject; see `Subject.save`."""
    if form not in ("light", "full"):
        raise ParameterError(f"form is {form!r}, expected light or full")
    if form == "full" and not subject.tables:
        raise ParameterError(
            "the subject has no reference table to save; encode it with keep_table=True, or save "
            'it with form="light"'
        )
    tables = subject.tables if form == "full" else ()
    values = {name: getattr(subject, name) for name in _FIELDS if name != "tables"}
    values["tables"] = [saved.key.to_dict() for saved in tables]
    metadata = {"format": FORMAT, "schema": SCHEMA, "subject": json.dumps(values)}
    tensors = {"latents": Tensor("F32", subject.latents)}
    if subject.prompt_states is not None:
        tensors["prompt_states"] = Tensor("F32", subject.prompt_states)
    if subject.preview is not None:
        tensors["preview"] = Tensor("U8", subject.preview)
    for number, saved in enumerate(tables):
        tensors |= table_tensors(saved.table, f"table.{number}.")
    write_tensor_file(Path(path), tensors, metadata)


def load_subject(path: str | PathLike[str], *, max_bytes: int) -> Subject:
    """Read a subject; see `Subject.load`."""
    path = Path(path)
    file = read_tensor_file(path, max_bytes=max_bytes)
    _check_kind(path, file.metadata)
    values = _values(path, file.metadata)
    tensors = dict(file.tensors)
    latents = _floats(path, tensors, "latents", 4)
    states = _floats(path, tensors, "prompt_states", 2) if "prompt_states" in tensors else None
    preview = tensors.pop("preview", None)
    if preview is not None and (
        preview.kind != "U8" or preview.array.ndim != 3 or not _is_preview(preview.array.shape)
    ):
        raise _wrong(path, f"its preview has shape {list(preview.array.shape)}")
    if len(latents) > _MAX_REFERENCES:
        raise _wrong(path, f"its latents have shape {list(latents.shape)}")
    taken = [
        take_table(path, key, tensors, f"table.{number}.")
        for number, key in enumerate(values["tables"])
    ]
    tables = tuple(replace(one, key=replace(one.key, origin=file.sha256)) for one in taken)
    if tensors:
        raise _wrong(path, f"it holds {sorted(tensors)[0]!r}, which no subject has")
    subject = Subject(
        pixels=None,
        latents=latents,
        reference_prompt=values["reference_prompt"],
        noise_seed=values["noise_seed"],
        pair_fingerprint=values["pair_fingerprint"],
        prompt_states=states,
        tables=tables,
        preview=None if preview is None else np.array(preview.array),
        pixels_sha256=values["pixels_sha256"],
    )
    if subject.fingerprint != values["fingerprint"]:
        raise _wrong(path, "its fingerprint is not that of what it holds")
    for saved in tables:
        _check_table(path, subject, saved)
    return subject


def _check_kind(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not the file of a subject; make one: encode-subject", path
        )
    if metadata.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {metadata.get('schema')!r}, expected {SCHEMA}; install a "
            "bootpig-rt that reads it, or encode the subject again",
            path,
        )


def _values(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    values = read_json_text(path, metadata, "subject")
    if not isinstance(values, dict) or set(values) != set(_FIELDS):
        raise _wrong(path, "its header lacks a field or has one too many")
    for name, kind in _FIELDS.items():
        if type(values[name]) is not kind:
            raise _wrong(path, f"{name} is of type {type(values[name]).__name__}")
    if not 0 <= values["noise_seed"] < 2**63:
        raise _wrong(path, f"noise_seed is {values['noise_seed']}")
    prompt = values["reference_prompt"]
    if not prompt.strip() or len(prompt) > _MAX_PROMPT_CHARS or "\0" in prompt:
        raise _wrong(path, "its reference prompt is empty, too long or holds a NUL")
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise _wrong(path, "its reference prompt holds a lone surrogate")
    if len(values["tables"]) > _MAX_TABLES:
        raise _wrong(path, f"it names {len(values['tables'])} tables")
    return values


def _floats(path: Path, tensors: dict[str, Tensor], name: str, dims: int) -> Any:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.kind != "F32" or tensor.array.ndim != dims:
        raise _wrong(path, f"tensor {name!r} is missing, not float32 or not of {dims} dimensions")
    if 0 in tensor.array.shape:
        raise _wrong(path, f"tensor {name!r} has shape {list(tensor.array.shape)}")
    if not np.isfinite(tensor.array).all():
        raise _wrong(path, f"tensor {name!r} holds NaN or Inf")
    return np.array(tensor.array)


def _is_preview(shape: tuple[int, ...]) -> bool:
    return shape[2] == 3 and 1 <= min(shape) and max(shape) <= PREVIEW_PX


def _check_table(path: Path, subject: Subject, saved: SavedTable) -> None:
    key = saved.key
    mine = {
        "subject": subject.fingerprint,
        "pair": subject.pair_fingerprint,
        "num_references": subject.num_references,
        "size": subject.latents.shape[-2:],
    }
    for name, value in mine.items():
        if getattr(key, name) != value:
            raise _wrong(path, f"one of its tables is of another {name}")


def _wrong(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used as a subject: {why}; encode it again", path)
