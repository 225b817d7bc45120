"""One drawing as pixels: SVG to a centred RGBA sprite, and what can be wrong with it.

A sprite is one identity cut out on a transparent square, its longest side `FILLED` of
the square's. This file knows nothing about concepts or files.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import BackendUnavailable

SPRITE_PX = 96
"""Side of a sprite, where no other is asked for."""
FILLED = 11 / 12
"""The subject's longest side, as a share of the sprite's."""
SUBJECT_PX = round(FILLED * SPRITE_PX)

MIN_SUBJECT_SHARE = 0.10
"""Least share of the sprite's area that a drawing covers; below it is a line or a dot."""
MIN_ASPECT = 0.16
"""Least ratio of the short side to the long side of a drawing."""
FRAME_SHARE = 0.97
"""A drawing that fills this share of a nearly square box counts as a framed picture."""
FRAME_ASPECT = 0.9
"""Least ratio of the sides of a box that counts as nearly square."""
VISIBLE_ALPHA = 8
"""Alpha (0..255) from which a pixel counts as part of the drawing when it is cropped."""
REDUCED_PX = 24
"""Side of the reduced sprites that are compared with each other."""

Pixels = NDArray[np.uint8]


def rasterize(svg: str, size_px: int) -> Image.Image:
    """Render an SVG document with its long side at `size_px`, on a transparent ground.

    Raises:
        BackendUnavailable: The package `resvg_py` is missing.
        ValueError: The document is not valid SVG.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise BackendUnavailable(
            'drawing the emoji needs the package resvg_py; run `pip install "bootpig-rt[train]"`'
        ) from error
    width, height = _sides(svg)
    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        skip_system_fonts=True,
        width=size_px if width >= height else None,
        height=None if width >= height else size_px,
    )
    with Image.open(io.BytesIO(bytes(png))) as image:
        return image.convert("RGBA")


def _sides(svg: str) -> tuple[float, float]:
    """Width and height that the document's first element declares."""
    head = svg.partition(">")[0]
    found = [re.search(rf'\s{side}="([0-9.]+)"', head) for side in ("width", "height")]
    if found[0] is None or found[1] is None:
        raise ValueError("the SVG document declares no width and height")
    return float(found[0][1]), float(found[1][1])


def foreground_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box (left, top, right, bottom) of what is visible; None if nothing is."""
    table = [0] * VISIBLE_ALPHA + [255] * (256 - VISIBLE_ALPHA)
    return image.getchannel("A").point(table).getbbox()


def fit_sprite(image: Image.Image, sprite_px: int = SPRITE_PX) -> Pixels:
    """Crop a drawing, RGBA, to what is visible and centre it, its long side at `FILLED`.

    Colours are scaled with premultiplied alpha, so no dark or light seam appears at the edge.

    Returns:
        uint8 [sprite_px, sprite_px, 4], straight alpha, colour 0 where alpha is 0.
    """
    subject_px = round(FILLED * sprite_px)
    box = foreground_box(image)
    if box is None:
        return np.zeros((sprite_px, sprite_px, 4), dtype=np.uint8)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = subject_px / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC
    scaled = image.crop(box).convert("RGBa").resize(shape, how)
    canvas = Image.new("RGBa", (sprite_px, sprite_px))
    canvas.paste(scaled, ((sprite_px - shape[0]) // 2, (sprite_px - shape[1]) // 2))
    pixels = np.array(canvas.convert("RGBA"), dtype=np.uint8)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def draw_sprite(svg: str, sprite_px: int = SPRITE_PX) -> Pixels:
    """Render an SVG document as a sprite; see `fit_sprite`.

    A drawing that fills little of its view box is rendered again, larger, so that it is never
    scaled up from few pixels.
    """
    render_px, subject_px = 2 * sprite_px, round(FILLED * sprite_px)
    image = rasterize(svg, render_px)
    box = foreground_box(image)
    if box is not None:
        side = max(box[2] - box[0], box[3] - box[1])
        if side < subject_px:
            image = rasterize(svg, min(16 * sprite_px, -(-render_px * subject_px // side)))
    return fit_sprite(image, sprite_px)


def fault_of(rgba: Pixels) -> str | None:
    """Why a sprite cannot be used: "empty", "thin", "tiny", "framed"; None if it can."""
    visible = rgba[..., 3] >= 128
    if not visible.any():
        return "empty"
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    aspect = min(height, width) / max(height, width)
    if aspect < MIN_ASPECT:
        return "thin"
    if visible.mean() < MIN_SUBJECT_SHARE:
        return "tiny"
    if aspect > FRAME_ASPECT and visible.sum() > FRAME_SHARE * height * width:
        return "framed"
    return None


def drawing_distance(first: Pixels, second: Pixels) -> float:
    """How different two sprites look: mean absolute difference of colour on white, in 0..1.

    Both are reduced to 24 x 24 first, so a thin outline or a shift of a pixel counts little, and
    the mean runs over the pixels that either drawing covers.
    """
    ground, cover = zip(*(reduce_sprite(rgba) for rgba in (first, second)), strict=True)
    union = np.maximum(*cover)
    if union.sum() == 0:
        return 0.0
    difference = np.abs(ground[0] - ground[1]).mean(axis=-1)
    return float((difference * union).sum() / union.sum())


def reduce_sprite(rgba: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a sprite on white [24, 24, 3] and its cover [24, 24], float32 in 0..1."""
    pixels = rgba.astype(np.float32) / 255.0
    alpha = pixels[..., 3:]
    flat = pixels[..., :3] * alpha + 1.0 - alpha
    side = REDUCED_PX
    step = rgba.shape[0] // side
    blocks = np.concatenate([flat, alpha], axis=-1).reshape(side, step, side, step, 4)
    reduced = blocks.mean(axis=(1, 3))
    return reduced[..., :3], reduced[..., 3]
