"""Augmentation of reference pictures: the paper's, that of the official code, and a lighter form.

In order: resize and place at random on white, flip, colour jitter, random erasing with white. The
paper (section 4.1, appendix B) draws sizes at random; the official code always fills the square,
and jitters and erases besides. The light form is for subjects whose views already differ from the
target's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bootpig_rt.training.config import Augmentation

Rng = np.random.Generator


@dataclass(frozen=True)
class Probabilities:
    """How often each part of the augmentation is applied, and the smallest size after resizing."""

    min_size: float
    flip: float
    jitter: float
    erase: float


PRESETS: dict[Augmentation, Probabilities] = {
    "paper": Probabilities(min_size=0.4, flip=0.5, jitter=0.0, erase=0.0),
    "official": Probabilities(min_size=1.0, flip=0.5, jitter=0.1, erase=0.4),
    "light": Probabilities(min_size=0.8, flip=0.0, jitter=0.1, erase=0.15),
}


def augment(rng: Rng, picture: NDArray[np.uint8], augmentation: Augmentation) -> NDArray[np.uint8]:
    """Change one reference picture, uint8 [S, S, 3] on white, without changing who it shows."""
    if augmentation == "none":
        return picture
    chances = PRESETS[augmentation]
    image = _resize_and_place(rng, Image.fromarray(picture), chances.min_size)
    if rng.random() < chances.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < chances.jitter:
        image = _jitter(rng, image)
    pixels = np.array(image)
    if rng.random() < chances.erase:
        _erase(rng, pixels)
    return pixels


def _resize_and_place(rng: Rng, image: Image.Image, min_size: float) -> Image.Image:
    side = image.width
    inked = np.asarray(image).min(axis=2) < 250
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if len(rows) == 0:
        return image
    crop = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    scale = rng.uniform(min_size, 1.0) * side / max(crop.size)
    width, height = (max(1, int(v * scale)) for v in crop.size)
    canvas = Image.new("RGB", (side, side), "white")
    corner = (int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1)))
    canvas.paste(crop.resize((width, height), Image.Resampling.BICUBIC), corner)
    return canvas


def _jitter(rng: Rng, image: Image.Image) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(0.8, 1.2)))
    hue = np.array(image.convert("HSV"))
    hue[..., 0] = (hue[..., 0].astype(np.int16) + int(rng.integers(-13, 14))) % 256
    return Image.fromarray(hue, "HSV").convert("RGB")


def _erase(rng: Rng, pixels: NDArray[np.uint8]) -> None:
    side = pixels.shape[0]
    area, ratio = rng.uniform(0.02, 0.25), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    height = min(side, max(1, int(side * np.sqrt(area * ratio))))
    width = min(side, max(1, int(side * np.sqrt(area / ratio))))
    y, x = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    pixels[y : y + height, x : x + width] = 255
