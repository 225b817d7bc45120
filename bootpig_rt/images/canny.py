"""Outlines of a picture by Canny's method, as controls of kind `canny` were trained with.

Canny 1986, "A Computational Approach to Edge Detection": gradients, of which only ridges are kept;
strong ones, and weak ones that hang together with a strong one. The details are those of OpenCV's
`Canny` with an aperture of 3, which published controls were trained on: Sobel gradients, in a
picture in colour those of the strongest channel, and |dx| + |dy| as their length. numpy only.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.checks import check_int
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.image_input import MAX_PIXELS, ImageSource, load_image

IntPlane: TypeAlias = npt.NDArray[np.int32]
BoolPlane: TypeAlias = npt.NDArray[np.bool_]

_TAN_22 = 13573
"""Of 22.5 degrees, times 2 ** 15."""


def canny_map(
    image: ImageSource, *, low: int = 100, high: int = 200, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The outlines of a picture: white lines of a pixel on black.

    Args:
        image: Whatever `load_image` accepts; transparent pixels count as white.
        low: Least length of a gradient that belongs to an outline at all, 0 to 4080.
        high: Least length of one that begins an outline.
        max_pixels: A larger picture is refused.

    Returns:
        RGB, of the picture's size.

    Raises:
        ImageError: The picture cannot be read.
        ParameterError: A threshold is out of range, or the low one is above the high one.
    """
    low, high = check_int("low", low, 0, 4080), check_int("high", high, 0, 4080)
    if low > high:
        raise ParameterError(f"low is {low} and high {high}, expected low <= high; swap them")
    picture = load_image(image, what="the photo of a map", max_pixels=max_pixels)
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    outlines = canny(np.asarray(picture.convert("RGB")), low, high)
    return Image.fromarray(np.where(outlines, np.uint8(255), np.uint8(0))).convert("RGB")


def canny(pixels: npt.NDArray[np.uint8], low: int, high: int) -> BoolPlane:
    """Which pixels lie on an outline.

    Args:
        pixels: uint8 [H, W, 3].
        low: Of a gradient that belongs to an outline.
        high: Of one that begins it.
    """
    dx, dy, length = _gradients(pixels)
    ridge = _ridges(dx, dy, length) & (length > low)
    return _grown(ridge & (length > high), ridge)


def _gradients(pixels: npt.NDArray[np.uint8]) -> tuple[IntPlane, IntPlane, IntPlane]:
    """Sobel's, of the channel in which they are longest; and |dx| + |dy|."""
    wide = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    left, right = wide[:, :-2], wide[:, 2:]
    across = right - left
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    along = wide[2:] - wide[:-2]
    dy = along[:, :-2] + 2 * along[:, 1:-1] + along[:, 2:]
    lengths = np.abs(dx) + np.abs(dy)
    channel = lengths.argmax(axis=2)[..., np.newaxis]
    picked = (np.take_along_axis(one, channel, axis=2)[..., 0] for one in (dx, dy, lengths))
    first, second, third = picked
    return first, second, third


def _ridges(dx: IntPlane, dy: IntPlane, length: IntPlane) -> BoolPlane:
    """Pixels that are longer than their neighbours across the outline."""
    height, width = length.shape
    wide = np.pad(length, 1)

    def beside(y: int, x: int) -> IntPlane:
        return wide[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    x, y = np.abs(dx).astype(np.int64), np.abs(dy).astype(np.int64) << 15
    near = x * _TAN_22
    is_flat, is_steep = y < near, y > near + (x << 16)
    is_falling = (dx ^ dy) < 0
    flat = (length > beside(0, -1)) & (length >= beside(0, 1))
    steep = (length > beside(-1, 0)) & (length >= beside(1, 0))
    rising = (length > beside(-1, -1)) & (length > beside(1, 1))
    falling = (length > beside(-1, 1)) & (length > beside(1, -1))
    slanted = np.where(is_falling, falling, rising)
    ridge: BoolPlane = np.where(is_flat, flat, np.where(is_steep, steep, slanted))
    return ridge


def _grown(seeds: BoolPlane, within: BoolPlane) -> BoolPlane:
    """All pixels of `within` that hang together with a seed, corners included."""
    height, width = within.shape
    free = np.pad(within & ~seeds, 1)
    found = np.pad(seeds, 1)
    front = np.argwhere(found)
    steps = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    while len(front):
        around = (front[:, np.newaxis] + steps).reshape(-1, 2)
        around = around[free[around[:, 0], around[:, 1]]]
        front = np.unique(around, axis=0)
        free[front[:, 0], front[:, 1]] = False
        found[front[:, 0], front[:, 1]] = True
    return found[1 : height + 1, 1 : width + 1]
