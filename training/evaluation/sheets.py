"""Sheets for people to look at: the reference, then the pictures of all prompts of a subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE_PX = 128
_LINE_PX = 15
_GAP_PX = 6


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 [S, S, 3] or RGBA, with words under it; green words are hits, red misses."""

    picture: NDArray[np.uint8] | Image.Image
    words: str
    is_hit: bool | None = None


def sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Lay tiles out in rows; the first of each row stands apart."""
    columns = max(len(row) for row in rows)
    step_x, step_y = TILE_PX + _GAP_PX, TILE_PX + _LINE_PX + _GAP_PX
    size = (columns * step_x + 3 * _GAP_PX, len(rows) * step_y + _GAP_PX)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(11)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, top = _GAP_PX + x * step_x + (2 * _GAP_PX if x else 0), _GAP_PX + y * step_y
            image.paste(_square(tile.picture), (left, top))
            ink = {None: "#555555", True: "#15803d", False: "#b91c1c"}[tile.is_hit]
            draw.text((left, top + TILE_PX), tile.words[:26], font=font, fill=ink)
    return image


def _square(picture: NDArray[np.uint8] | Image.Image) -> Image.Image:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image = image.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    if image.mode != "RGBA":
        return image.convert("RGB")
    square = Image.new("RGB", image.size, "white")
    square.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return square
