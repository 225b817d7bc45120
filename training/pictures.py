"""Pictures as tensors and back, and sheets of them for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import grid


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
