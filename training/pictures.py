"""Pictures of shards in memory, and sheets of pictures for people to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bootpig_rt.errors import ConfigError
from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import grid
from bootpig_rt.training.shards import read_manifest, read_samples


@dataclass(frozen=True)
class Pictures:
    """All samples of a folder.

    `targets` uint8 [N, S, S, 3]; `masks` uint8 [N, S, S]; `references` uint8 [M, S, S, 3], those of
    sample n at `first_reference[n]` up to `first_reference[n + 1]`; captions and prompts, N each.
    """

    targets: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    references: NDArray[np.uint8]
    first_reference: NDArray[np.int64]
    captions: list[str]
    reference_prompts: list[str]


def load_pictures(folder: Path, *, max_samples: int = 0) -> Pictures:
    """Read the samples of a folder of shards (the first `max_samples`; 0 for all).

    Raises:
        InputError: The folder has no manifest.
        ConfigError: It has no samples.
    """
    count = read_manifest(folder)["samples"]
    count = min(count, max_samples) if max_samples else count
    if count < 1:
        raise ConfigError(f"{folder} has no samples; make some with `bootpig-rt synthesize`")
    targets, masks, references, first = [], [], [], [0]
    captions, prompts = [], []
    for sample in read_samples(folder):
        if sample.index >= count:
            break
        targets.append(sample.target)
        masks.append(sample.mask)
        references.extend(sample.references)
        first.append(len(references))
        captions.append(sample.caption)
        prompts.append(sample.reference_prompt)
    return Pictures(
        np.stack(targets),
        np.stack(masks),
        np.stack(references),
        np.asarray(first, dtype=np.int64),
        captions,
        prompts,
    )


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Pictures, uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Pictures, [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3]."""
    scaled = (pixels.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5
    array: NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return array


def subject_difference(a: Tensor, b: Tensor, masks: Tensor) -> float:
    """Mean difference of two sets of pictures, [N, 3, H, W] in [-1, 1], where the subject is.

    `masks` uint8 [N, h, w] are shares of the subject, 0..255, enlarged to the pictures.
    """
    mask = torch.nn.functional.interpolate(masks.float()[:, None] / 255, a.shape[-1])
    return float(((a - b).abs() * mask).sum() / (3 * mask.sum()))


def save_sheet(rows: list[NDArray[np.uint8]], path: Path) -> None:
    """Write rows of pictures, each uint8 [N, S, S, 3], as one PNG, twice as large."""
    sheet = grid([Image.fromarray(each) for row in rows for each in row], len(rows[0]), gap_px=0)
    size = (2 * sheet.width, 2 * sheet.height)
    save_png(sheet.resize(size, Image.Resampling.NEAREST), path)
