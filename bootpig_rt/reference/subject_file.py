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
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct, ValidationError

from bootpig_rt.backends.host_table import TableDtype
from bootpig_rt.errors import CheckpointError, ParameterError, one_line, shown
from bootpig_rt.files.tensor_file import (
    Tensor,
    read_tensor_file,
    read_tensor_header,
    write_tensor_file,
)
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.table_file import read_json_text, table_tensors, take_table

FORMAT = "bootpig-rt subject"
SCHEMA = "2"

PREVIEW_PX = 96
"""Longest side of the preview picture."""

MAX_FILE_BYTES = 16 << 30
"""A larger file is refused unless `Subject.load` is told otherwise."""

_MAX_REFERENCES = 1024


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a subject that are no arrays, and the keys of its tables."""

    reference_prompt: Annotated[str, Meta(max_length=10_000)]
    noise_seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    pair_fingerprint: str
    pixels_sha256: str
    fingerprint: str
    tables: Annotated[list[dict[str, Any]], Meta(max_length=64)]


@dataclass(frozen=True, eq=False)
class SubjectContents:
    """What a file holds: fields of `Subject`, which checks the fingerprint."""

    latents: npt.NDArray[np.float32]
    reference_prompt: str
    noise_seed: int
    pair_fingerprint: str
    prompt_states: npt.NDArray[np.float32] | None
    tables: tuple[ReferenceTable, ...]
    preview: npt.NDArray[np.uint8] | None
    pixels_sha256: str
    fingerprint: str


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
    values = _header(path, header.metadata)
    latents = header.shapes.get("latents", ())
    if len(latents) != 4:
        raise unusable(path, f"its latents have shape {list(latents)}")
    tables = []
    for number, entry in enumerate(values.tables):
        try:
            key = ReferenceKey.from_dict(entry)
        except ParameterError as error:
            raise unusable(path, f"{error}") from error
        sizes = [n for name, n in header.sizes_bytes.items() if name.startswith(f"table.{number}.")]
        tables.append(TableFacts(key.dtype, len(key.timesteps), sum(sizes)))
    return SubjectFacts(
        fingerprint=values.fingerprint,
        form="full" if tables else "light",
        reference_prompt=values.reference_prompt,
        num_references=latents[0],
        noise_seed=values.noise_seed,
        pair=values.pair_fingerprint,
        latents=latents,
        tables=tuple(tables),
    )


def write_subject(path: str | PathLike[str], subject: SubjectContents) -> None:
    """Write the file of a subject; see `Subject.save`."""
    header = _Header(
        reference_prompt=subject.reference_prompt,
        noise_seed=subject.noise_seed,
        pair_fingerprint=subject.pair_fingerprint,
        pixels_sha256=subject.pixels_sha256,
        fingerprint=subject.fingerprint,
        tables=[table.key.to_dict() for table in subject.tables],
    )
    metadata = {
        "format": FORMAT,
        "schema": SCHEMA,
        "subject": json.dumps(msgspec.to_builtins(header)),
    }
    tensors = {"latents": Tensor("F32", subject.latents)}
    if subject.prompt_states is not None:
        tensors["prompt_states"] = Tensor("F32", subject.prompt_states)
    if subject.preview is not None:
        tensors["preview"] = Tensor("U8", subject.preview)
    for number, table in enumerate(subject.tables):
        tensors |= table_tensors(table.data, f"table.{number}.")
    write_tensor_file(Path(path), tensors, metadata)


def read_subject(path: str | PathLike[str], *, max_bytes: int) -> SubjectContents:
    """Read the file of a subject; see `Subject.load`."""
    path = Path(path)
    file = read_tensor_file(path, max_bytes=max_bytes)
    header = _header(path, file.metadata)
    tensors = dict(file.tensors)
    latents = _floats(path, tensors, "latents", 4)
    states = _floats(path, tensors, "prompt_states", 2) if "prompt_states" in tensors else None
    preview = tensors.pop("preview", None)
    if preview is not None and (
        preview.kind != "U8" or preview.array.ndim != 3 or not _is_preview(preview.array.shape)
    ):
        raise unusable(path, f"its preview has shape {list(preview.array.shape)}")
    if len(latents) > _MAX_REFERENCES:
        raise unusable(path, f"its latents have shape {list(latents.shape)}")
    taken = [
        take_table(path, key, tensors, f"table.{number}.")
        for number, key in enumerate(header.tables)
    ]
    tables = tuple(replace(one, key=replace(one.key, origin=file.sha256)) for one in taken)
    if tensors:
        raise unusable(path, f"it holds {sorted(tensors)[0]!r}, which no subject has")
    contents = SubjectContents(
        latents=latents,
        reference_prompt=header.reference_prompt,
        noise_seed=header.noise_seed,
        pair_fingerprint=header.pair_fingerprint,
        prompt_states=states,
        tables=tables,
        preview=None if preview is None else np.array(preview.array),
        pixels_sha256=header.pixels_sha256,
        fingerprint=header.fingerprint,
    )
    _check_tables(path, contents)
    return contents


def _header(path: Path, metadata: Mapping[str, str]) -> _Header:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not the file of a subject; make one: encode-subject", path
        )
    if metadata.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {shown(metadata.get('schema'))}, expected {SCHEMA}; install a "
            "bootpig-rt that reads it, or encode the subject again",
            path,
        )
    try:
        header = msgspec.convert(read_json_text(path, metadata, "subject"), _Header)
    except (ValidationError, UnicodeEncodeError) as error:  # the latter of names that are no text
        raise unusable(path, f"its header is wrong: {error}") from error
    prompt = header.reference_prompt
    if not prompt.strip() or "\0" in prompt or any("\ud800" <= c <= "\udfff" for c in prompt):
        raise unusable(path, "its reference prompt is empty or holds what is no text")
    return header


def _floats(path: Path, tensors: dict[str, Tensor], name: str, dims: int) -> Any:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.kind != "F32" or tensor.array.ndim != dims:
        raise unusable(path, f"tensor {name!r} is missing, not float32 or not of {dims} dimensions")
    if 0 in tensor.array.shape:
        raise unusable(path, f"tensor {name!r} has shape {list(tensor.array.shape)}")
    if not np.isfinite(tensor.array).all():
        raise unusable(path, f"tensor {name!r} holds NaN or Inf")
    return np.array(tensor.array)


def _is_preview(shape: tuple[int, ...]) -> bool:
    return shape[2] == 3 and 1 <= min(shape) and max(shape) <= PREVIEW_PX


def _check_tables(path: Path, subject: SubjectContents) -> None:
    mine = {
        "subject": subject.fingerprint,
        "pair": subject.pair_fingerprint,
        "num_references": len(subject.latents),
        "size": subject.latents.shape[-2:],
    }
    for table in subject.tables:
        for name, value in mine.items():
            if getattr(table.key, name) != value:
                raise unusable(path, f"one of its tables is of another {name}")


def unusable(path: str | PathLike[str], why: str) -> CheckpointError:
    """The error for a file that holds no subject as it should."""
    text = f"{path} cannot be used as a subject: {one_line(why)}; encode it again"
    return CheckpointError(text, path)
