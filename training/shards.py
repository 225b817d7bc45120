"""Shards of samples: what a sample is, and the one writer and reader of folders of them.

A folder holds WebDataset tar files and `manifest.json`. A sample is the members of one key:
`KEY.target.png`, `KEY.mask.png`, `KEY.reference0.png` and on, `KEY.json` with its caption and
whatever else is known of it. Keys are numbers; those of a folder count from 0. We write PNG; JPEG
and WebP are read as well. A shard is written under a temporary name and renamed; its record
(counts, sha256) stands beside it; the manifest is written last and names every shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError, InputError, describe_os_error
from bootpig_rt.files.atomic import atomic_write, atomic_write_text

FORMAT = 1
FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""Pictures that are read, by the last part of a member's name."""


@dataclass(frozen=True)
class StoredSample:
    """One sample of a shard.

    `target` is uint8 [S, S, 3], `mask` uint8 [S, S] (0..255, how much of a pixel is the subject),
    each of `references` uint8 [S, S, 3]. `record` is all of the JSON, caption and prompt included.
    """

    index: int
    target: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    references: list[NDArray[np.uint8]]
    caption: str
    reference_prompt: str
    record: dict[str, Any]


@dataclass(frozen=True)
class EncodedSample:
    """A sample as its members, by what follows the key in their names: see `encode_sample`."""

    index: int
    parts: Mapping[str, bytes]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tar"


def kept_record(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that is whole; None where it has to be written."""
    record_path = _record_path(folder, number)
    path = folder / shard_name(number)
    if not (record_path.exists() and path.exists()):
        return None
    try:
        record: dict[str, Any] = json.loads(record_path.read_text())
        is_whole = record["bytes"] == path.stat().st_size and record["file"] == path.name
    except (ValueError, KeyError, TypeError):  # of somebody else, or cut
        return None
    return record if is_whole else None


def write_shard(
    folder: Path,
    number: int,
    samples: Iterable[StoredSample | EncodedSample],
    *,
    first: int,
    rejects: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write one shard and its record.

    Args:
        folder: Where it goes.
        number: Of the shard, from 0.
        samples: Taken one by one, in order of their index.
        first: Index of the first sample.
        rejects: How many were rejected for which reason; read after the last sample, so that a
            generator may count while it makes them.

    Returns:
        The record: file, first index, number of samples, bytes, sha256, rejects by reason.

    Raises:
        StorageError: It cannot be written; nothing of it is left.
    """
    count = 0

    def members() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for sample in samples:
            count += 1
            parts = sample.parts if isinstance(sample, EncodedSample) else encode_sample(sample)
            yield from ((f"{sample.index:08d}.{part}", data) for part, data in parts.items())

    path = folder / shard_name(number)
    write_tar(path, members())
    size_bytes, digest = measure(path)
    record = {
        "file": path.name,
        "first": first,
        "samples": count,
        "bytes": size_bytes,
        "sha256": digest,
        "rejects": dict(sorted((rejects or {}).items())),
    }
    write_json(_record_path(folder, number), record)
    return record


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) as a tar file, all at once and without times or owners.

    Raises:
        StorageError: It cannot be written; nothing of it is left.
    """
    with (
        atomic_write(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def encode_sample(sample: StoredSample) -> dict[str, bytes]:
    """The members of a sample, in the order of a shard; the index is left to the writer."""
    parts = {"target.png": encode_png(sample.target), "mask.png": encode_png(sample.mask)}
    for k, reference in enumerate(sample.references):
        parts[f"reference{k}.png"] = encode_png(reference)
    texts = {"caption": sample.caption, "reference_prompt": sample.reference_prompt}
    parts["json"] = json.dumps(texts | sample.record).encode()
    return parts


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A picture, a mask or a depth of 16 bits as the PNG that shards hold."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file, all at once."""
    atomic_write_text(path, json.dumps(value, indent=1) + "\n")


def claim_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write `settings.json`, so that a folder holds samples of one making only.

    Raises:
        ConfigError: The folder holds samples of other settings.
    """
    path = folder / "settings.json"
    try:
        found = json.loads(path.read_text()) if path.exists() else settings
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); choose another folder, or delete this one to start anew"
        ) from error
    if found != settings:
        raise ConfigError(
            f"{folder} holds samples of other settings; choose another folder, or delete it to "
            "start anew"
        )
    write_json(path, settings)


def write_manifest(
    folder: Path, records: Sequence[dict[str, Any]], settings: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Write the manifest of shards that are all there, and return it.

    Args:
        folder: Of the shards.
        records: As `write_shard` returned them, in order.
        settings: All that decides what the samples are.
        more: What else it says, by name.
    """
    rejects: Counter[str] = Counter()
    for record in records:
        rejects.update(record["rejects"])
    manifest = {
        "format": FORMAT,
        "samples": sum(record["samples"] for record in records),
        "settings": settings,
        "rejects": dict(sorted(rejects.items())),
        "shards": list(records),
        **more,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of shards.

    Raises:
        InputError: There is none, or it is of another format.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(
            f"{folder} has no manifest.json; make samples with `bootpig-rt synthesize` or "
            "`bootpig-rt bootstrap`, or run it again if it was interrupted"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        found = manifest.get("format")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no manifest of shards ({error}); make it again") from error
    if found != FORMAT:
        raise InputError(f"{path}: format {found}, expected {FORMAT}; make it again")
    return manifest


def read_samples(folder: Path) -> Iterator[StoredSample]:
    """Yield every sample of a folder in order of its index.

    Raises:
        InputError: The folder has no manifest, or a shard is missing or damaged.
    """
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        # A tar that was cut between two members reads like a shorter one.
        if path.exists() and path.stat().st_size != shard["bytes"]:
            raise _damaged(path, f"{path.stat().st_size} bytes, expected {shard['bytes']}")
        index = shard["first"]
        for sample in read_shard(path):
            if sample.index != index:
                raise _damaged(
                    path, f"sample {sample.index} is where {index} should be; was it renamed?"
                )
            index += 1
            yield sample
        if index != shard["first"] + shard["samples"]:
            raise _damaged(path, f"{index - shard['first']} samples, expected {shard['samples']}")


def read_shard(path: Path) -> Iterator[StoredSample]:
    """Yield the samples of one shard.

    Raises:
        InputError: The shard is missing, damaged, or holds something else.
    """
    for key, parts in read_tar(path):
        yield decode_sample(key, parts, path)


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, content of its members by the rest of their names) of a WebDataset tar file.

    Raises:
        InputError: The file is missing or damaged.
    """
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                stream = tar.extractfile(member)
                if stream is None:
                    raise InputError(f"{path}: {member.name} is not a file; make the shard again")
                folder, _, name = member.name.rpartition("/")
                stem, _, part = name.partition(".")
                this = f"{folder}/{stem}" if folder else stem
                if parts and this != key:
                    yield key, parts
                    parts = {}
                key = this
                parts[part] = stream.read()
    except (OSError, tarfile.TarError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise _damaged(path, reason) from error
    if parts:
        yield key, parts


def decode_sample(key: str, parts: Mapping[str, bytes], path: Path) -> StoredSample:
    """The sample of a key and its members; `path` is the shard's, for errors.

    Raises:
        InputError: A member is missing or damaged, or the key is no number.
    """
    pictures = {}
    for part, data in parts.items():
        stem, _, kind = part.rpartition(".")
        if kind.lower() in FORMATS:
            pictures[stem] = (kind.lower(), data)
    for part in ("target", "mask"):
        if part not in pictures:
            found = ", ".join(sorted(parts))
            raise _damaged(path, f"sample {key} has no {part}.png, only {found}")
    if "json" not in parts:
        raise _damaged(path, f"sample {key} has no json; does it end within a sample?")
    try:
        record = json.loads(parts["json"])
        caption, prompt = str(record["caption"]), str(record["reference_prompt"])
        index = int(key.rpartition("/")[2])
        names = sorted((p for p in pictures if p.startswith("reference")), key=_reference_number)
        return StoredSample(
            index,
            _decode(*pictures["target"], "RGB"),
            _decode(*pictures["mask"], "L"),
            [_decode(*pictures[name], "RGB") for name in names],
            caption,
            prompt,
            record,
        )
    except KeyError as error:
        raise _damaged(path, f"the json of sample {key} has no {error}") from error
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise _damaged(path, f"sample {key}: {error}") from error


def _decode(kind: str, data: bytes, mode: str) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=[FORMATS[kind]])
    return np.asarray(image.convert(mode), dtype=np.uint8)


def _reference_number(part: str) -> int:
    return int(part.removeprefix("reference") or 0)


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read the shard {path} ({reason}); delete it and run the command that made it "
        "again with the same settings"
    )
