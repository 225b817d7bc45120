"""The reference image of timings: any will do, since no time depends on what it shows."""

from __future__ import annotations

from PIL import Image, ImageDraw

_COLOURS = ((220, 60, 30), (30, 120, 220), (40, 160, 70), (200, 160, 20))


def drawing(index: int = 0) -> Image.Image:
    """A cut-out of 128 px, another for each index."""
    image = Image.new("RGBA", (128, 128))
    box = (20, 30 + 4 * (index % 4), 110, 100)
    ImageDraw.Draw(image).ellipse(box, fill=_COLOURS[index % len(_COLOURS)])
    return image
