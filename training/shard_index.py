"""Where the files of each sample are in a shard, so that any sample is read without the others.

WebDataset's layout is kept: members of one key in a row. An index is made once for a shard, from
the headers of its members; whoever makes it reads all of the shard once to check its digest.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bootpig_rt.checks import check_prompt
from bootpig_rt.errors import InputError, PromptError, describe_os_error
from bootpig_rt.training.caches import map_tensors, write_tensors
from bootpig_rt.training.shards import FORMATS

MAX_TEXT_BYTES = 1 << 20
"""Of the JSON of a sample."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """Where n samples with m references are in one shard, mapped from the disk.

    Attributes:
        targets: [n, 2], first byte and number of bytes of each picture's file; so `masks`, and
            `references` [m, 2].
        first_reference: [n + 1]; the references of sample i are from entry i to entry i + 1.
        sizes_px: [n, 2], width and height of the targets; so `reference_sizes_px` [m, 2].
        text: uint8, captions and reference prompts one behind the other.
        text_at: [2n + 1]; the caption of sample i begins at entry 2i, its prompt at entry 2i + 1.
    """

    targets: Indices
    masks: Indices
    references: Indices
    first_reference: Indices
    sizes_px: Indices
    reference_sizes_px: Indices
    text: NDArray[np.uint8]
    text_at: Indices

    def __len__(self) -> int:
        return len(self.targets)

    def texts(self, row: int) -> tuple[str, str]:
        """Caption and reference prompt of a sample."""
        first, middle, last = self.text_at[2 * row : 2 * row + 3].tolist()
        return (
            self.text[first:middle].tobytes().decode(),
            self.text[middle:last].tobytes().decode(),
        )


def read_index(path: Path) -> ShardIndex:
    """Map an index that `write_index` wrote.

    Raises:
        StorageError: It is damaged.
    """
    tensors, _ = map_tensors(path)
    return ShardIndex(**{name: tensor.numpy() for name, tensor in tensors.items()})


def write_index(
    path: Path, shard: Path, record: dict[str, Any], advance: Callable[[int], object]
) -> None:
    """Check a shard against its record in the manifest and write where its samples are.

    Args:
        path: Of the index.
        shard: The tar file.
        record: Says `samples`, `bytes` and `sha256`.
        advance: Told of each sample.

    Raises:
        InputError: The shard is missing, damaged, not as its record says, or a sample is no sample.
        StorageError: The index cannot be written.
    """
    try:
        with shard.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record["sha256"]:
                raise changed(shard, f"its sha256 is {digest[:12]}..")
            file.seek(0)
            index = _index_of(shard, file, advance)
    except tarfile.TarError as error:
        raise damaged(shard, str(error)) from error
    except OSError as error:
        raise damaged(shard, describe_os_error(error)) from error
    if len(index["targets"]) != record["samples"]:
        raise changed(shard, f"it has {len(index['targets'])} samples")
    write_tensors(path, index, {})


def changed(shard: Path, found: str) -> InputError:
    """The error for a shard that is not what its manifest says."""
    return InputError(
        f"{shard} is not as manifest.json beside it says ({found}): it was changed or cut after "
        "it was made; copy it again, or delete it and run the command that made it"
    )


def damaged(shard: Path, reason: str) -> InputError:
    """The error for a shard that cannot be read."""
    return InputError(
        f"cannot read the shard {shard} ({reason}); copy it again, or delete it and run the "
        "command that made it"
    )


@dataclass(frozen=True)
class _Member:
    part: str
    place: tuple[int, int]
    info: tarfile.TarInfo


def _index_of(shard: Path, file: BinaryIO, advance: Callable[[int], object]) -> dict[str, Tensor]:
    places: dict[str, list[tuple[int, int]]] = {"targets": [], "masks": [], "references": []}
    sizes: dict[str, list[tuple[int, int]]] = {"sizes_px": [], "reference_sizes_px": []}
    first, texts, text_at = [0], bytearray(), [0]
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for key, members in _samples(shard, tar):
            pictures: dict[str, _Member] = {}
            record: _Member | None = None
            for member in members:
                stem, _, kind = member.part.rpartition(".")
                if member.part == "json":
                    record = member
                elif kind.lower() in FORMATS:
                    pictures[stem] = member
            names = sorted((n for n in pictures if n.startswith("reference")), key=_number)
            missing = [n for n in ("target", "mask") if n not in pictures]
            missing += [] if record else ["json"]
            missing += [] if names else ["reference0"]
            if missing or record is None:
                raise damaged(shard, f"sample {key} has no {missing[0]}")
            for text in _read_texts(shard, key, tar, record.info):
                texts += text.encode()
                text_at.append(len(texts))
            places["targets"].append(pictures["target"].place)
            places["masks"].append(pictures["mask"].place)
            places["references"] += [pictures[name].place for name in names]
            first.append(len(places["references"]))
            sizes["sizes_px"].append(_size(shard, tar, pictures["target"].info))
            sizes["reference_sizes_px"] += [
                _size(shard, tar, pictures[name].info) for name in names
            ]
            advance(1)
    tensors = {
        name: torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        for name, found in {**places, **sizes}.items()
    }
    tensors["first_reference"] = torch.tensor(first)
    tensors["text"] = torch.from_numpy(np.frombuffer(bytes(texts) or b"\0", np.uint8).copy())
    tensors["text_at"] = torch.tensor(text_at)
    return tensors


def _samples(shard: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, list[_Member]]]:
    """Members of each key, by headers alone."""
    key, members = "", list[_Member]()
    for info in tar:
        if info.isdir():
            continue
        if not info.isfile():
            raise damaged(shard, f"{info.name} is not a file")
        folder, _, name = info.name.rpartition("/")
        stem, _, part = name.partition(".")
        this = f"{folder}/{stem}"
        if members and this != key:
            yield key.lstrip("/"), members
            members = []
        key = this
        members.append(_Member(part, (info.offset_data, info.size), info))
    if members:
        yield key.lstrip("/"), members


def _read_texts(
    shard: Path, key: str, tar: tarfile.TarFile, info: tarfile.TarInfo
) -> tuple[str, str]:
    if info.size > MAX_TEXT_BYTES:
        raise damaged(shard, f"the json of sample {key} has {info.size} bytes")
    stream: Any = tar.extractfile(info)
    try:
        record = json.loads(stream.read())
        texts = record["caption"], record["reference_prompt"]
        caption, prompt = (check_prompt(text, "caption", allow_empty=True) for text in texts)
    except (ValueError, TypeError, KeyError) as error:  # a PromptError is a ValueError
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        kind = "caption" if isinstance(error, PromptError) else "json"
        raise damaged(shard, f"the {kind} of sample {key}: {what}") from error
    return caption, prompt


def _size(shard: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[int, int]:
    stream: Any = tar.extractfile(info)
    try:
        with Image.open(stream, formats=list(FORMATS.values())) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise damaged(shard, f"{info.name}: {error}") from error


def _number(name: str) -> int:
    digits = name.removeprefix("reference")
    return int(digits) if digits.isdigit() else 0
