"""Sizes that pictures are trained at: which of them a picture takes, and how it is fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import ConfigError

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Sizing:
    """The sizes of a training.

    Attributes:
        buckets: Sizes of targets.
        reference_px: Side of references, and of pictures for validation, which are square.
    """

    buckets: tuple[Size, ...]
    reference_px: int

    def bucket_of(self, sizes_px: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The bucket of each picture, [N], from widths and heights [N, 2].

        It is that of the nearest ratio of width to height; of several, that of the nearest area.
        """
        buckets = np.log(np.array(self.buckets, np.float64))
        found, rows = np.unique(sizes_px, axis=0, return_inverse=True)
        sizes = np.log(found.astype(np.float64))
        ratio = np.abs(np.subtract.outer(sizes[:, 0] - sizes[:, 1], buckets[:, 0] - buckets[:, 1]))
        area = np.abs(np.subtract.outer(sizes.sum(1), buckets.sum(1)))
        nearest = np.lexsort((area, ratio.round(9)), axis=1)[:, 0]
        of_each: NDArray[np.uint16] = nearest.astype(np.uint16)[rows.reshape(-1)]
        return of_each

    def count(self, sizes_px: NDArray[np.int64]) -> tuple[list[int], int, int]:
        """Pictures in each bucket, how many of all are resized or cut, and how many enlarged."""
        of_each = self.bucket_of(sizes_px)
        wanted = np.array(self.buckets)[of_each]
        resized = (sizes_px != wanted).any(1)
        counts = np.bincount(of_each, minlength=len(self.buckets)).tolist()
        return counts, int(resized.sum()), int((sizes_px < wanted).any(1).sum())


def check_sizes(sizes: Sequence[Size], multiple: int, name: str) -> None:
    """Refuse sizes that the model cannot take.

    Raises:
        ConfigError: Names the first of them and the nearest one that it can.
    """
    for width, height in sizes:
        if width % multiple or height % multiple:
            near = [max(1, round(side / multiple)) * multiple for side in (width, height)]
            raise ConfigError(
                f"{name} has {width} x {height}, expected multiples of {multiple} px, as the "
                f"model needs; the nearest is {near}"
            )


def fit(target: Pixels, mask: Pixels, size: Size) -> tuple[Pixels, Pixels]:
    """A picture, uint8 [H, W, 3], and its mask [H, W], at a size.

    Both are scaled until they cover it, and cut so that the subject is as near to the middle as
    can be.
    """
    height, width = mask.shape
    if (width, height) == size:
        return target, mask
    scale = max(size[0] / width, size[1] / height)
    box = []  # left and top of what is kept, in pixels of the original
    for axis, (side, length) in enumerate(zip(size, (width, height), strict=True)):
        weight = mask.sum(axis, dtype=np.float64)
        centre = length / 2
        if weight.any():
            centre = float((weight * (np.arange(length) + 0.5)).sum() / weight.sum())
        kept = side / scale
        box.append(min(max(centre - kept / 2, 0.0), length - kept))
    left, top = box
    area = (left, top, min(left + size[0] / scale, width), min(top + size[1] / scale, height))
    fitted = (
        Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=area)
        for pixels in (target, mask)
    )
    return np.asarray(next(fitted)), np.asarray(next(fitted))


def fit_reference(reference: Pixels, side: int) -> Pixels:
    """A reference, uint8 [H, W, 3] on white, as a square: all of it, with white at its sides."""
    height, width = reference.shape[:2]
    if (height, width) == (side, side):
        return reference
    scale = side / max(height, width)
    inside = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (side, side), "white")
    corner = ((side - inside[0]) // 2, (side - inside[1]) // 2)
    canvas.paste(Image.fromarray(reference).resize(inside, Image.Resampling.LANCZOS), corner)
    return np.asarray(canvas)
