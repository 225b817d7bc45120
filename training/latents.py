"""Latents of a data set, computed once with a frozen VAE and kept on the disk, a file for a shard.

All processes make them side by side. A file is named by all that it was made from, so a shard, a
VAE or a size that changes gets another one. They are mapped, not loaded: what memory they take is
the system's cache of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.weights import digest_tensors
from bootpig_rt.training.buckets import Pixels, Size, Sizing, fit, fit_reference
from bootpig_rt.training.caches import make_missing, map_tensors, write_tensors
from bootpig_rt.training.pictures import to_tensor
from bootpig_rt.training.read_ahead import each_ahead
from bootpig_rt.training.samples import Samples

FORMAT = 1
ENCODED_PIXELS = 1 << 20
"""Of the pictures that are encoded together: four of 512 px."""
_MOST_TOGETHER = 64
_THREADS = 2


@dataclass(frozen=True)
class Latents:
    """A few samples as the U-Nets see them, in memory.

    `targets` [N, C, h, w] and `references` [M, C, r, r], float16, scaled by the VAE's factor;
    `masks` uint8 [N, h, w], share of the subject in 0..255; references of sample n from
    `first_reference[n]` to `first_reference[n + 1]`; `captions` and `reference_prompts`, N each.
    """

    targets: Tensor
    references: Tensor
    masks: Tensor
    first_reference: Tensor
    captions: list[str]
    reference_prompts: list[str]


@dataclass(frozen=True)
class _Shard:
    """Latents of one shard, mapped: targets [cells * C] and masks [cells] one behind the other.

    Those of row i are the cells from `first_cell[i]` to `first_cell[i + 1]`, in the shape
    `shapes[i]`, height and width.
    """

    targets: Tensor
    masks: Tensor
    references: Tensor
    first_reference: Tensor
    first_cell: Tensor
    shapes: Tensor


class StoredLatents:
    """The latents of a data set, one file a shard; reads those of some samples. Safe in threads.

    Attributes:
        samples: The data set.
        shape: C, h, w of the latents of `sizing.reference_px`.
    """

    def __init__(self, samples: Samples, files: Sequence[Path], sizing: Sizing) -> None:
        self.samples, self.sizing = samples, sizing
        self._shards = []
        for file in files:
            tensors, about = map_tensors(file)
            self._shards.append(_Shard(**tensors))
            channels, side = about["channels"], about["side"]
        self.shape: tuple[int, int, int] = (channels, side, side)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Of samples of one size, float16 [B, C, h, w]."""
        channels = self.shape[0]
        found = []
        for sample in indices:
            shard, row, first, last = self._cells(sample)
            cells = shard.targets[first * channels : last * channels]
            found.append(cells.view(channels, *shard.shapes[row].tolist()))
        return torch.stack(found)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """Likewise, uint8 [B, h, w]."""
        found = []
        for sample in indices:
            shard, row, first, last = self._cells(sample)
            found.append(shard.masks[first:last].view(*shard.shapes[row].tolist()))
        return torch.stack(found)

    def references(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """Of (sample, number of its reference), float16 [n, C, r, r]; none where none is stored."""
        found = []
        for sample, number in chosen:
            shard, row, _, _ = self._cells(sample)
            found.append(shard.references[int(shard.first_reference[row]) + number])
        return torch.stack(found) if found else torch.zeros(0, *self.shape, dtype=torch.float16)

    def _cells(self, sample: int) -> tuple[_Shard, int, int, int]:
        number, row = self.samples.locate(sample)
        shard = self._shards[number]
        first, last = shard.first_cell[row : row + 2].tolist()
        return shard, row, first, last


def store_latents(
    samples: Samples,
    sizing: Sizing,
    vae: Any,
    cache: Path,
    *,
    device: torch.device,
    with_references: bool = True,
) -> StoredLatents:
    """Map the latents of a data set; make those that are missing.

    Args:
        samples: The data set.
        sizing: Sizes at which samples are encoded.
        vae: Frozen; its weights and scale are part of the names of the files.
        cache: Folder for them, of all data sets.
        device: Where the VAE is.
        with_references: Also of the references.

    Raises:
        InputError: A shard is damaged, or was changed since it was opened.
        StorageError: A file cannot be written, or is damaged.
    """
    settings = [FORMAT, digest_tensors(vae.state_dict()), LatentScale(vae).numbers()]
    settings += [sizing.buckets, sizing.reference_px, with_references]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder = cache / f"latents-{digest[:16]}"
    files = [
        folder / f"{sha256[:16]}-{count}.safetensors"
        for sha256, count in zip(samples.digests, samples.shard_sizes, strict=True)
    ]

    def make(shard: int, advance: Callable[[int], object]) -> None:
        found = _encode_shard(
            samples, samples.range_of(shard), sizing, vae, device, with_references, advance
        )
        about = {"channels": found["references"].shape[1], "side": found["references"].shape[2]}
        write_tensors(files[shard], found, about)

    make_missing(files, samples.shard_sizes, make, what="latents", unit="sample")
    return StoredLatents(samples, files, sizing)


def read_latents(samples: Samples, sizing: Sizing, vae: Any, *, device: torch.device) -> Latents:
    """Encode a small data set whole, into memory, at the size of the references."""
    side = sizing.reference_px
    square = Sizing(((side, side),), side)
    found = _encode_shard(
        samples, range(len(samples)), square, vae, device, True, lambda count: None
    )
    texts = [samples.texts(sample) for sample in range(len(samples))]
    _, channels, height, width = found["references"].shape
    return Latents(
        found["targets"].view(-1, channels, height, width),
        found["references"],
        found["masks"].view(-1, height, width),
        found["first_reference"],
        [caption for caption, _ in texts],
        [prompt for _, prompt in texts],
    )


def _encode_shard(
    samples: Samples,
    which: range,
    sizing: Sizing,
    vae: Any,
    device: torch.device,
    with_references: bool,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """The tensors of a file, those of `_Shard`; one batch of pictures is held at a time."""
    buckets = sizing.bucket_of(samples.sizes_px[which.start : which.stop]).tolist()
    targets, references = _Encoder(vae, device), _Encoder(vae, device)
    masks: list[Tensor] = []
    first_reference, shapes = [0], []
    wanted: Sequence[int] | None = None if with_references else ()
    read = each_ahead(lambda sample: samples.read(sample, references=wanted), which, _THREADS)
    factor = vae_factor(vae)
    for number, bucket, sample in zip(which, buckets, read, strict=True):
        target, mask = fit(sample.target, sample.mask, sizing.buckets[bucket])
        targets.add(target)
        for reference in sample.references:
            references.add(fit_reference(reference, sizing.reference_px))
        first_reference.append(first_reference[-1] + samples.num_references(number))
        shapes.append((mask.shape[0] // factor, mask.shape[1] // factor))
        share = torch.from_numpy(mask.astype(np.float32))[None, None]
        masks.append(torch.nn.functional.adaptive_avg_pool2d(share, shapes[-1]).round()[0, 0])
        advance(1)
    cells = torch.tensor([0, *(height * width for height, width in shapes)])
    side = sizing.reference_px // factor
    none = torch.zeros(0, vae.config.latent_channels, side, side, dtype=torch.float16)
    return {
        "targets": torch.cat([latents.flatten() for latents in targets.finish()]),
        "masks": torch.cat([mask.flatten() for mask in masks]).to(torch.uint8),
        "references": torch.stack(references.finish()) if with_references else none,
        "first_reference": torch.tensor(first_reference),
        "first_cell": cells.cumsum(0),
        "shapes": torch.tensor(shapes),
    }


def vae_factor(vae: Any) -> int:
    """Pixels along a side of one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


class _Encoder:
    """Encodes pictures of any sizes one by one, those of a size together."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self._vae, self._device = vae, device
        self._waiting: dict[Size, list[tuple[int, Pixels]]] = {}
        self._found: dict[int, Tensor] = {}
        self._count = 0

    def add(self, pixels: Pixels) -> None:
        """Take a picture, uint8 [H, W, 3]."""
        height, width = pixels.shape[:2]
        waiting = self._waiting.setdefault((width, height), [])
        waiting.append((self._count, pixels))
        self._count += 1
        if len(waiting) == _together(width, height):
            self._encode((width, height))

    def finish(self) -> list[Tensor]:
        """Latents of all pictures, float16 [C, h, w] each, in the order in which they came."""
        for size in list(self._waiting):
            self._encode(size)
        return [self._found[place] for place in range(self._count)]

    def _encode(self, size: Size) -> None:
        places, pixels = zip(*self._waiting.pop(size), strict=True)
        found = encode(self._vae, np.stack(pixels), self._device)
        self._found.update(zip(places, found, strict=True))


def _together(width: int, height: int) -> int:
    return max(1, min(_MOST_TOGETHER, ENCODED_PIXELS // (width * height)))


@torch.no_grad()
def encode(vae: Any, pixels: Pixels, device: torch.device) -> Tensor:
    """Encode pictures uint8 [N, H, W, 3] to scaled latents, without chance, float16, CPU."""
    parts, scale = [], LatentScale(vae)
    batch = _together(pixels.shape[2], pixels.shape[1])
    for start in range(0, len(pixels), batch):
        chunk = to_tensor(pixels[start : start + batch]).to(device)
        latents = scale.scaled(mean_latents(vae, chunk))
        parts.append(latents.to("cpu", torch.float16))
    return torch.cat(parts).contiguous()
