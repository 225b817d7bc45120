"""The file of a subject: safetensors with a typed header, checked in full before it is used.

Light: latents, text states of the reference prompt and a preview. Full: reference tables as well.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.subject import PREVIEW_PX, SavedTable, Subject
from bootpig_rt.table_file import read_json_text, table_tensors, take_table
from bootpig_rt.tensor_file import Tensor, TensorFile, read_tensor_file, write_tensor_file

FORMAT = "bootpig-rt subject"
SCHEMA = "1"
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
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not the file of a subject; make one: encode-subject", path
        )
    if file.metadata.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {file.metadata.get('schema')!r}, expected {SCHEMA}; install a "
            "bootpig-rt that reads it, or encode the subject again",
            path,
        )
    values = _values(path, file)
    tensors = dict(file.tensors)
    latents = _floats(path, tensors, "latents", 4)
    states = _floats(path, tensors, "prompt_states", 2) if "prompt_states" in tensors else None
    preview = tensors.pop("preview", None)
    if preview is not None and (
        preview.kind != "U8" or preview.array.ndim != 3 or not _is_preview(preview.array.shape)
    ):
        raise _wrong(path, f"its preview has shape {list(preview.array.shape)}")
    if not 1 <= len(latents) <= _MAX_REFERENCES or 0 in latents.shape:
        raise _wrong(path, f"its latents have shape {list(latents.shape)}")
    tables = tuple(
        take_table(path, key, tensors, f"table.{number}.")
        for number, key in enumerate(values["tables"])
    )
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


def _values(path: Path, file: TensorFile) -> dict[str, Any]:
    values = read_json_text(path, file.metadata, "subject")
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
    }
    for name, value in mine.items():
        if getattr(key, name) != value:
            raise _wrong(path, f"one of its tables is of another {name}")


def _wrong(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used as a subject: {why}; encode it again", path)
