"""A data set in shards, any sample of which is read alone: what a sample is made of, in pixels.

Holds where samples are, never what they are. A shard is opened for each sample that is read, and
refused where it is no longer the file whose digest was checked.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import ConfigError, InputError, describe_os_error
from bootpig_rt.training.caches import make_missing
from bootpig_rt.training.shard_index import (
    ShardIndex,
    changed,
    damaged,
    read_index,
    write_index,
)
from bootpig_rt.training.shards import FORMATS, read_manifest

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _Shard:
    """A tar file, what it was when it was checked, and where its samples are."""

    path: Path
    sha256: str
    size_bytes: int
    mtime_ns: int
    index: ShardIndex


@dataclass(frozen=True)
class Sample:
    """One sample as it is in its shard.

    Attributes:
        target: uint8 [H, W, 3].
        mask: uint8 [H, W], how much of a pixel is the subject.
        references: Each uint8 [H, W, 3], on white.
    """

    target: Pixels
    mask: Pixels
    references: list[Pixels]


class Samples:
    """The samples of a folder of shards, numbered in the manifest's order. Safe in threads.

    Args:
        folder: Has a manifest.
        cache: Folder for indices of shards, made where they are missing.
        max_samples: Only the first so many; 0 for all.

    Attributes:
        shard_sizes: Samples in each shard.
        digests: sha256 of each shard.
        sizes_px: int64 [N, 2], width and height of the targets; so `reference_sizes_px` [M, 2].

    Raises:
        InputError: No manifest; a shard is missing, damaged or not as the manifest says.
        ConfigError: There are no samples.
        StorageError: An index cannot be written.
    """

    def __init__(self, folder: Path, cache: Path, *, max_samples: int = 0) -> None:
        self.folder = folder
        records = _records(folder)
        self.shard_sizes: list[int] = []
        left = max_samples or sum(record["samples"] for record in records)
        for record in records:
            if left < 1:
                break
            self.shard_sizes.append(min(left, record["samples"]))
            left -= self.shard_sizes[-1]
        records = records[: len(self.shard_sizes)]
        if not sum(self.shard_sizes):
            raise ConfigError(f"{folder} has no samples; make some with `bootpig-rt synthesize`")
        self._bounds = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.digests = [str(record["sha256"]) for record in records]
        self._shards = _open_shards(folder, records, cache / "index")
        parts = list(zip([s.index for s in self._shards], self.shard_sizes, strict=True))
        self.sizes_px = np.concatenate([index.sizes_px[:count] for index, count in parts])
        self.reference_sizes_px = np.concatenate(
            [index.reference_sizes_px[: index.first_reference[count]] for index, count in parts]
        )
        references = [int(index.first_reference[count]) for index, count in parts]
        self._reference_bounds = np.concatenate([[0], np.cumsum(references)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """Shard of a sample, and its row there."""
        shard = int(np.searchsorted(self._bounds, sample, "right")) - 1
        return shard, sample - int(self._bounds[shard])

    def range_of(self, shard: int) -> range:
        """The samples of a shard."""
        return range(int(self._bounds[shard]), int(self._bounds[shard + 1]))

    def shard_path(self, shard: int) -> Path:
        """The tar file of a shard."""
        return self._shards[shard].path

    def texts(self, sample: int) -> tuple[str, str]:
        """Caption and reference prompt."""
        shard, row = self.locate(sample)
        return self._shards[shard].index.texts(row)

    def num_references(self, sample: int) -> int:
        """How many references a sample has, at least 1."""
        shard, row = self.locate(sample)
        first = self._shards[shard].index.first_reference
        return int(first[row + 1] - first[row])

    def read(self, sample: int, *, references: Sequence[int] | None = None) -> Sample:
        """Decode a sample, with all of its references or with some.

        Raises:
            InputError: The shard was changed or cut since it was opened, or a picture is damaged.
        """
        index = self._shards[self.locate(sample)[0]].index
        row = self.locate(sample)[1]
        target, mask, *found = self._read(
            sample,
            [(index.targets[row], "RGB"), (index.masks[row], "L")],
            range(self.num_references(sample)) if references is None else references,
        )
        if mask.shape != target.shape[:2]:
            raise damaged(
                self._shards[self.locate(sample)[0]].path,
                f"the target of its sample {row} is {target.shape[1]} x {target.shape[0]} px, its "
                f"mask {mask.shape[1]} x {mask.shape[0]}",
            )
        return Sample(target, mask, found)

    def reference(self, sample: int, number: int) -> Pixels:
        """Decode one reference, uint8 [H, W, 3].

        Raises:
            InputError: As for `read`.
        """
        return self._read(sample, [], [number])[0]

    def reference_at(self, number: int) -> Pixels:
        """Decode one of the M references, counted over all samples, uint8 [H, W, 3].

        Raises:
            InputError: As for `read`.
        """
        shard = int(np.searchsorted(self._reference_bounds, number, "right")) - 1
        number -= int(self._reference_bounds[shard])
        first = self._shards[shard].index.first_reference
        row = int(np.searchsorted(first, number, "right")) - 1
        return self.reference(int(self._bounds[shard]) + row, number - int(first[row]))

    def _read(
        self, sample: int, wanted: list[tuple[Any, str]], references: Sequence[int]
    ) -> list[Pixels]:
        number, row = self.locate(sample)
        shard = self._shards[number]
        first = int(shard.index.first_reference[row])
        wanted = wanted + [(shard.index.references[first + k], "RGB") for k in references]
        found = []
        try:
            with shard.path.open("rb", buffering=0) as file:
                _check_same(shard, file.fileno())
                for (offset, size), mode in wanted:
                    file.seek(int(offset))
                    data = file.read(int(size))
                    with Image.open(io.BytesIO(data), formats=list(FORMATS.values())) as image:
                        found.append(np.asarray(image.convert(mode), dtype=np.uint8))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, InputError):
                raise
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise damaged(shard.path, f"its sample {row}: {reason}") from error
        return found


def _check_same(shard: _Shard, descriptor: int) -> None:
    now = os.stat(descriptor)
    if (now.st_size, now.st_mtime_ns) != (shard.size_bytes, shard.mtime_ns):
        raise changed(shard.path, f"it has {now.st_size} bytes and was written to")


def _records(folder: Path) -> list[dict[str, Any]]:
    """What the manifest says of each shard."""
    records: list[dict[str, Any]] = read_manifest(folder).get("shards", [])
    for record in records:
        kinds = {"file": str, "samples": int, "bytes": int, "sha256": str}
        for name, kind in kinds.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                raise InputError(
                    f"{folder / 'manifest.json'} does not say {name!r} of every shard; make it "
                    "again with the command that made the shards"
                )
        if Path(record["file"]).name != record["file"]:
            raise InputError(
                f"{folder / 'manifest.json'} names the shard {record['file']!r}, expected a file "
                "beside it; move it there"
            )
    return records


def _open_shards(folder: Path, records: list[dict[str, Any]], cache: Path) -> list[_Shard]:
    paths = [folder / record["file"] for record in records]
    states = []
    for path, record in zip(paths, records, strict=True):
        try:
            state = path.stat()
        except OSError as error:
            raise damaged(path, describe_os_error(error)) from error
        if state.st_size != record["bytes"]:
            raise changed(path, f"{state.st_size} bytes, expected {record['bytes']}")
        states.append(state)
    # A file that was written to since is checked again.
    files = [
        cache / f"{record['sha256'][:16]}-{state.st_mtime_ns:x}.safetensors"
        for record, state in zip(records, states, strict=True)
    ]
    make_missing(
        files,
        [record["samples"] for record in records],
        lambda i, advance: write_index(files[i], paths[i], records[i], advance),
        what="shards checked",
        unit="sample",
    )
    return [
        _Shard(path, record["sha256"], state.st_size, state.st_mtime_ns, read_index(file))
        for path, record, state, file in zip(paths, records, states, files, strict=True)
    ]
