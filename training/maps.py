"""Maps that controls learn to read, one for each sample of a data set, kept on the disk.

Where shards hold `KEY.depth.png`, as the 3-D world writes it where it is told to, that is the
depth; elsewhere the small world's, which follows from the mask. Outlines are made of the targets.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bootpig_rt.errors import InputError, describe_os_error
from bootpig_rt.images.canny import canny
from bootpig_rt.training.buckets import fit
from bootpig_rt.training.caches import make_missing, map_tensors, write_tensors
from bootpig_rt.training.card_depth import card_depth, metric_depth
from bootpig_rt.training.samples import Samples

MapKind = Literal["depth", "canny"]

FORMAT = 1
CANNY_LOW, CANNY_HIGH = 100, 200
_DEPTH = ".depth.png"


@dataclass(frozen=True)
class StoredMaps:
    """The maps of a data set, mapped from files; of one square size.

    Attributes:
        samples: The data set.
        shards: uint8 [n, S, S] of each shard.
    """

    samples: Samples
    shards: tuple[Tensor, ...]

    def of(self, indices: Sequence[int]) -> Tensor:
        """Those of some samples, float32 [B, 3, S, S] in [0, 1]."""
        places = [self.samples.locate(sample) for sample in indices]
        grey = torch.stack([self.shards[shard][row] for shard, row in places])
        return (grey.float() / 255.0)[:, None].expand(-1, 3, -1, -1)


def store_maps(samples: Samples, kind: MapKind, side_px: int, cache: Path) -> StoredMaps:
    """Map the maps of a data set; make those that are missing.

    Args:
        samples: The data set.
        kind: What the maps show.
        side_px: Of the pictures as they are trained on.
        cache: Folder for them, of all data sets.

    Raises:
        InputError: A shard is damaged.
        StorageError: A file cannot be written, or is damaged.
    """
    folder = cache / f"maps-{kind}-{FORMAT}-{side_px}"
    sizes = zip(samples.digests, samples.shard_sizes, strict=True)
    files = [folder / f"{digest[:16]}-{count}.safetensors" for digest, count in sizes]

    def make(shard: int, advance: Callable[[int], object]) -> None:
        depths = _stored_depths(samples.shard_path(shard)) if kind == "depth" else []
        made = []
        for row, number in enumerate(samples.range_of(shard)):
            made.append(_map_of(samples, number, kind, side_px, depths[row] if depths else None))
            advance(1)
        write_tensors(files[shard], {"maps": torch.from_numpy(np.stack(made))}, {"kind": kind})

    make_missing(files, samples.shard_sizes, make, what=f"{kind} maps", unit="sample")
    return StoredMaps(samples, tuple(map_tensors(file)[0]["maps"] for file in files))


def read_maps(samples: Samples, kind: MapKind, side_px: int) -> Tensor:
    """The maps of a small data set, float32 [N, 3, S, S] in [0, 1].

    Raises:
        InputError: A shard is damaged.
    """
    made = []
    for shard in range(len(samples.shard_sizes)):
        depths = _stored_depths(samples.shard_path(shard)) if kind == "depth" else []
        for row, number in enumerate(samples.range_of(shard)):
            made.append(_map_of(samples, number, kind, side_px, depths[row] if depths else None))
    grey = torch.from_numpy(np.stack(made)).float() / 255.0
    return grey[:, None].expand(-1, 3, -1, -1)


def _map_of(
    samples: Samples, number: int, kind: MapKind, side_px: int, depth: bytes | None
) -> NDArray[np.uint8]:
    sample = samples.read(number, references=())
    if kind == "canny":
        target, _ = fit(sample.target, sample.mask, (side_px, side_px))
        return canny(target, CANNY_LOW, CANNY_HIGH).astype(np.uint8) * 255
    if depth is not None:
        grey = metric_depth(np.asarray(Image.open(io.BytesIO(depth))).astype(np.uint16))
        fitted, _ = fit(np.repeat(grey[..., None], 3, axis=2), sample.mask, (side_px, side_px))
        return np.ascontiguousarray(fitted[..., 0])
    _, mask = fit(sample.target, sample.mask, (side_px, side_px))
    return card_depth(mask)


def _stored_depths(path: Path) -> list[bytes]:
    """What a shard holds of depth, in the order of its samples; empty where it holds none.

    Raises:
        InputError: It is damaged, or some of its samples have a depth and others none.
    """
    found: dict[str, bytes | None] = {}
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                key = member.name.partition(".")[0]
                found.setdefault(key, None)
                if member.name.endswith(_DEPTH):
                    file = shard.extractfile(member)
                    found[key] = b"" if file is None else file.read()
    except (OSError, tarfile.TarError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} is damaged: {reason}; make it again") from error
    depths = [depth for depth in found.values() if depth is not None]
    if depths and len(depths) < len(found):
        raise InputError(
            f"{path}: {len(depths)} of {len(found)} samples have a depth, expected all or none; "
            "make it again"
        )
    return depths
