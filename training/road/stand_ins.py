"""Plain shapes in place of fetched drawings, so that the road can be judged without a network.

Sixteen things in six styles each, in the layout that `bootpig-rt fetch-data` leaves. They show that
the judges run and which way they point; how good a pair is, drawings must tell.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bootpig_rt.files.atomic import atomic_write, atomic_write_text
from bootpig_rt.training.raster import SPRITE_PX, Pixels
from bootpig_rt.training.sprites import LIST_FILE, PIXELS_FILE

NOUNS = (
    *("balloon", "bell", "gift", "soccer ball", "crown", "shield", "drum", "gem stone"),
    *("cookie", "gear", "candle", "ring", "backpack", "mailbox", "star", "trophy"),
)
"""Words that the small base knows."""
SHAPES = ("ellipse", "square", "triangle", "bar", "ring", "cross")
COLOURS = ("#dc2828", "#28aa3c", "#3250dc", "#f0c828", "#963caa", "#28b4be", "#e67819", "#6e4628")
NUM_CONCEPTS = 3
"""So many of the last things are held out whole; of each other thing, one style is."""


def write_stand_ins(folder: Path) -> None:
    """Write `sprites.npz` and `sprites.json` into a folder, which is made if need be.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, pixels = [], []
    for number, noun in enumerate(NOUNS):
        for style, shape in enumerate(SHAPES):
            split = "held_out_identity" if style == number % len(SHAPES) else "train"
            if number >= len(NOUNS) - NUM_CONCEPTS:
                split = "held_out_concept"
            entries.append(
                {
                    "concept": noun.replace(" ", "-"),
                    "style": shape,
                    "icon": f"{noun}-{shape}".replace(" ", "-"),
                    "noun": noun,
                    "category": "Objects",
                    "split": split,
                }
            )
            step = number + 3 * style
            pixels.append(_draw(shape, COLOURS[step % 8], COLOURS[(step + 2) % 8]))
    with atomic_write(folder / PIXELS_FILE) as file:
        np.savez_compressed(file, rgba=np.stack(pixels))
    atomic_write_text(folder / LIST_FILE, json.dumps(entries, indent=0) + "\n")


def _draw(shape: str, ink: str, spot: str) -> Pixels:
    """A shape with a spot of another colour, uint8 [SPRITE_PX, SPRITE_PX, 4]."""
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    if shape == "ellipse":
        draw.ellipse((4, 16, 92, 80), fill=ink)
    elif shape == "square":
        draw.rectangle((4, 4, 92, 92), fill=ink)
    elif shape == "triangle":
        draw.polygon([(48, 4), (4, 92), (92, 92)], fill=ink)
    elif shape == "bar":
        draw.rectangle((4, 30, 92, 66), fill=ink)
    elif shape == "ring":
        draw.ellipse((4, 4, 92, 92), outline=ink, width=22)
    else:
        draw.rectangle((34, 4, 62, 92), fill=ink)
        draw.rectangle((4, 34, 92, 62), fill=ink)
    draw.ellipse((38, 38, 58, 58), fill=spot)
    return np.asarray(image.resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS))
