"""Drawn backgrounds of the small world: sixteen scenes, each with endless variations.

A scene is a function of a random generator that draws a picture with plain shapes. Colours,
horizons, counts and places vary, so that a scene is a kind of place, not one picture. Nothing here
knows about subjects or prompts beyond the phrases that name a scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """One kind of place: its key, the phrases that name it, and how it is drawn."""

    key: str
    phrases: tuple[str, ...]
    draw: Callable[[Rng, int], Image.Image]


def draw_scene(key: str, rng: Rng, size_px: int) -> NDArray[np.uint8]:
    """Draw one variation of a scene.

    Args:
        key: A key of `SCENES`.
        rng: Source of all variation; the same state gives the same picture.
        size_px: Side of the square picture. Drawn at twice this size, then reduced.

    Returns:
        uint8 [size_px, size_px, 3], RGB.
    """
    image = SCENES[key].draw(rng, 2 * size_px)
    return np.asarray(image.reduce(2), dtype=np.uint8)


def _vary(rng: Rng, colour: Colour, amount: int = 14) -> Colour:
    shift = rng.integers(-amount, amount + 1, 3) + rng.integers(-amount, amount + 1)
    r, g, b = (int(min(255, max(0, c + s))) for c, s in zip(colour, shift, strict=True))
    return r, g, b


def _sky(
    rng: Rng, size: int, top: Colour, bottom: Colour
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture that goes from one colour to another, and what draws on it."""
    a = np.asarray(_vary(rng, top), dtype=np.float32)
    b = np.asarray(_vary(rng, bottom), dtype=np.float32)
    share = np.linspace(0.0, 1.0, size, dtype=np.float32)[:, None]
    column = (a * (1.0 - share) + b * share).astype(np.uint8)
    image = Image.fromarray(np.repeat(column[:, None, :], size, axis=1))
    return image, ImageDraw.Draw(image)


def _hills(
    rng: Rng, draw: ImageDraw.ImageDraw, size: int, level: float, colour: Colour, wave: float
) -> None:
    x = np.linspace(0.0, 1.0, 17)
    phase, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.6)
    y = level + wave * np.sin(2 * math.pi * frequency * x + phase)
    outline = [(float(a) * size, float(b) * size) for a, b in zip(x, y, strict=True)]
    draw.polygon([*outline, (size, size), (0, size)], fill=_vary(rng, colour))


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _clouds(rng: Rng, draw: ImageDraw.ImageDraw, size: int, colour: Colour) -> None:
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0, size), rng.uniform(0.05, 0.28) * size
        for dx in (-0.06, 0.0, 0.06):
            _disc(draw, x + dx * size, y, rng.uniform(0.035, 0.06) * size, colour)


def _beach(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (110, 190, 245), (200, 232, 250))
    _clouds(rng, draw, size, (250, 252, 255))
    horizon = rng.uniform(0.36, 0.44) * size
    draw.rectangle((0, horizon, size, size), fill=_vary(rng, (40, 130, 190)))
    _hills(rng, draw, size, rng.uniform(0.54, 0.62), (236, 208, 150), 0.02)
    for _ in range(12):
        x, y = rng.uniform(0, size), rng.uniform(0.68, 1.0) * size
        _disc(draw, x, y, 0.008 * size, _vary(rng, (205, 172, 115)))
    return image


def _snow(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (165, 190, 215), (215, 226, 238))
    _hills(rng, draw, size, rng.uniform(0.46, 0.54), (208, 220, 236), 0.05)
    _hills(rng, draw, size, rng.uniform(0.60, 0.68), (244, 248, 253), 0.03)
    for _ in range(rng.integers(25, 40)):
        x, y = rng.uniform(0, size, 2)
        _disc(draw, x, y, rng.uniform(0.008, 0.014) * size, (255, 255, 255))
    return image


def _meadow(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (120, 195, 250), (205, 235, 250))
    _clouds(rng, draw, size, (255, 255, 255))
    _hills(rng, draw, size, rng.uniform(0.42, 0.50), (120, 190, 90), 0.04)
    _hills(rng, draw, size, rng.uniform(0.56, 0.64), (85, 165, 65), 0.02)
    for _ in range(rng.integers(10, 18)):
        x, y = rng.uniform(0, size), rng.uniform(0.7, 1.0) * size
        petal = ((250, 240, 90), (250, 250, 250), (240, 120, 170))[rng.integers(3)]
        _disc(draw, x, y, 0.012 * size, petal)
    return image


def _city(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (14, 18, 48), (52, 46, 92))
    x = -rng.uniform(0, 0.1) * size
    while x < size:
        width, top = rng.uniform(0.12, 0.2) * size, rng.uniform(0.12, 0.42) * size
        draw.rectangle((x, top, x + width, size), fill=_vary(rng, (34, 38, 62)))
        for wy in np.arange(top + 0.04 * size, 0.74 * size, 0.075 * size):
            for wx in np.arange(x + 0.02 * size, x + width - 0.035 * size, 0.055 * size):
                if rng.random() < 0.55:
                    draw.rectangle(
                        (wx, wy, wx + 0.026 * size, wy + 0.034 * size), fill=(250, 215, 110)
                    )
        x += width + rng.uniform(0.0, 0.02) * size
    draw.rectangle((0, 0.76 * size, size, size), fill=_vary(rng, (48, 48, 58), 8))
    for x in np.arange(rng.uniform(0, 0.15), 1.0, 0.22):
        draw.rectangle(
            (x * size, 0.87 * size, (x + 0.11) * size, 0.89 * size), fill=(200, 200, 205)
        )
    return image


def _desert(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (250, 190, 110), (252, 225, 165))
    _disc(draw, rng.uniform(0.1, 0.9) * size, 0.14 * size, 0.075 * size, (255, 248, 205))
    _hills(rng, draw, size, rng.uniform(0.44, 0.52), (226, 150, 80), 0.06)
    _hills(rng, draw, size, rng.uniform(0.60, 0.68), (208, 125, 60), 0.04)
    for _ in range(rng.integers(1, 3)):
        x, y = rng.uniform(0.02, 0.98) * size, rng.uniform(0.40, 0.48) * size
        green = _vary(rng, (70, 125, 70))
        draw.rectangle((x, y, x + 0.03 * size, y + 0.18 * size), fill=green)
        draw.rectangle((x - 0.04 * size, y + 0.06 * size, x, y + 0.085 * size), fill=green)
    return image


def _forest(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (58, 110, 62), (120, 165, 95))
    for _ in range(rng.integers(6, 9)):
        x, width = rng.uniform(0, size), rng.uniform(0.03, 0.07) * size
        draw.rectangle((x, 0, x + width, 0.7 * size), fill=_vary(rng, (82, 56, 36)))
    for _ in range(rng.integers(14, 20)):
        x, y = rng.uniform(0, size), rng.uniform(0.0, 0.26) * size
        _disc(draw, x, y, rng.uniform(0.06, 0.1) * size, _vary(rng, (34, 92, 44)))
    _hills(rng, draw, size, rng.uniform(0.64, 0.70), (50, 88, 40), 0.015)
    return image


def _underwater(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (60, 190, 215), (8, 62, 128))
    for _ in range(rng.integers(5, 8)):
        x, top = rng.uniform(0, size), rng.uniform(0.55, 0.8) * size
        points = [
            (x + 0.025 * size * math.sin(0.16 * k + x), top + (size - top) * k / 12)
            for k in range(13)
        ]
        draw.line(points, fill=_vary(rng, (28, 140, 90)), width=max(2, int(0.03 * size)))
    _hills(rng, draw, size, rng.uniform(0.88, 0.93), (196, 178, 120), 0.015)
    for _ in range(rng.integers(10, 16)):
        x, y, r = rng.uniform(0, size), rng.uniform(0, 0.9) * size, rng.uniform(0.01, 0.025) * size
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(200, 240, 250), width=2)
    return image


def _space(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (6, 5, 20), (22, 12, 44))
    for _ in range(rng.integers(35, 55)):
        x, y = rng.uniform(0, size, 2)
        shade = int(rng.integers(170, 256))
        _disc(draw, x, y, rng.uniform(0.006, 0.012) * size, (shade, shade, shade))
    x, y = rng.choice([0.12, 0.88]) * size, rng.uniform(0.1, 0.25) * size
    planet = ((210, 120, 80), (120, 160, 210), (190, 170, 120))[rng.integers(3)]
    _disc(draw, x, y, rng.uniform(0.08, 0.13) * size, _vary(rng, planet))
    return image


def _kitchen(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (250, 240, 205), (242, 226, 180))
    step = 0.125 * size
    for k in range(9):
        draw.line((k * step, 0, k * step, 0.6 * size), fill=(222, 204, 160), width=2)
        draw.line((0, k * step, size, k * step), fill=(222, 204, 160), width=2)
    top = rng.uniform(0.60, 0.66) * size
    draw.rectangle((0, top, size, size), fill=_vary(rng, (168, 108, 62)))
    for y in np.arange(top + 0.07 * size, size, 0.09 * size):
        draw.line((0, y, size, y), fill=_vary(rng, (138, 84, 46)), width=2)
    return image


def _library(rng: Rng, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _vary(rng, (86, 56, 34)))
    draw = ImageDraw.Draw(image)
    for shelf in range(4):
        base = (0.24 + 0.25 * shelf) * size
        x = 0.0
        while x < size:
            width, height = rng.uniform(0.03, 0.06) * size, rng.uniform(0.14, 0.2) * size
            book = ((150, 40, 40), (40, 80, 140), (50, 110, 70), (190, 150, 70), (110, 60, 120))
            colour = _vary(rng, book[rng.integers(5)], 18)
            draw.rectangle((x, base - height, x + max(width - 2, 0), base), fill=colour)
            x += width
        draw.rectangle((0, base, size, base + 0.035 * size), fill=(62, 40, 24))
    return image


def _sunset(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (96, 50, 130), (255, 150, 70))
    horizon = rng.uniform(0.56, 0.64) * size
    x, radius = rng.uniform(0.15, 0.85) * size, rng.uniform(0.1, 0.14) * size
    _disc(draw, x, horizon - 0.02 * size, radius, (255, 226, 120))
    draw.rectangle((0, horizon, size, size), fill=_vary(rng, (92, 42, 84)))
    for k in range(6):
        y, half = horizon + (0.04 + 0.06 * k) * size, rng.uniform(0.04, 0.12) * size
        draw.rectangle((x - half, y, x + half, y + 0.014 * size), fill=(250, 160, 100))
    return image


def _mountains(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (96, 150, 220), (196, 220, 242))
    for x in rng.permutation([0.1, 0.4, 0.65, 0.95]):
        x = (x + rng.uniform(-0.06, 0.06)) * size
        top, half = rng.uniform(0.1, 0.26) * size, rng.uniform(0.26, 0.36) * size
        grey = _vary(rng, (112, 116, 134))
        draw.polygon([(x, top), (x - half, 0.7 * size), (x + half, 0.7 * size)], fill=grey)
        cap = 0.3 * half
        low = top + 0.3 * (0.7 * size - top)
        draw.polygon(
            [(x, top), (x - cap, low), (x, low * 0.94), (x + cap, low)], fill=(248, 250, 255)
        )
    _hills(rng, draw, size, rng.uniform(0.64, 0.70), (92, 140, 96), 0.02)
    return image


def _bricks(rng: Rng, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (196, 186, 176))
    draw = ImageDraw.Draw(image)
    base, height, width = _vary(rng, (168, 72, 56)), 0.075 * size, 0.18 * size
    for row in range(11):
        offset = (row % 2) * width / 2 + rng.uniform(-0.01, 0.01) * size
        for column in range(-1, 7):
            x, y = column * width + offset, row * height
            right, bottom = x + max(width - 2, 2), y + max(height - 2, 2)
            box = (x + 2, y + 2, right, bottom)
            draw.rectangle(box, fill=_vary(rng, base, 10))
    draw.rectangle((0, 0.8 * size, size, size), fill=_vary(rng, (136, 134, 132), 8))
    return image


def _autumn(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (206, 220, 226), (240, 226, 190))
    leaves = ((226, 120, 30), (200, 70, 30), (238, 176, 50))
    for _ in range(rng.integers(3, 5)):
        x = rng.uniform(0, size)
        draw.rectangle(
            (x - 0.015 * size, 0.25 * size, x + 0.015 * size, 0.68 * size), fill=(84, 58, 40)
        )
        for _ in range(7):
            dx, dy = rng.uniform(-0.11, 0.11, 2) * size
            _disc(draw, x + dx, 0.2 * size + dy, 0.065 * size, _vary(rng, leaves[rng.integers(3)]))
    _hills(rng, draw, size, rng.uniform(0.62, 0.68), (186, 122, 60), 0.02)
    for _ in range(rng.integers(18, 28)):
        x, y = rng.uniform(0, size), rng.uniform(0.68, 1.0) * size
        _disc(draw, x, y, 0.014 * size, _vary(rng, leaves[rng.integers(3)]))
    return image


def _rain(rng: Rng, size: int) -> Image.Image:
    image, draw = _sky(rng, size, (84, 92, 106), (140, 148, 158))
    for _ in range(rng.integers(3, 6)):
        x = rng.uniform(0, size)
        _disc(draw, x, 0.05 * size, rng.uniform(0.1, 0.15) * size, _vary(rng, (62, 68, 80), 6))
    draw.rectangle((0, 0.72 * size, size, size), fill=_vary(rng, (88, 98, 112), 8))
    for _ in range(rng.integers(40, 60)):
        x, y = rng.uniform(0, size, 2)
        end = (x - 0.02 * size, y + 0.075 * size)
        draw.line(((x, y), end), fill=(190, 206, 226), width=2)
    return image


def _stage(rng: Rng, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (120, 14, 26))
    draw = ImageDraw.Draw(image)
    fold, red = rng.uniform(0.07, 0.1) * size, _vary(rng, (176, 26, 38))
    for k in range(16):
        shade = red if k % 2 else (red[0] - 50 if red[0] > 50 else 0, 8, 18)
        draw.rectangle((k * fold, 0, (k + 1) * fold, 0.74 * size), fill=shade)
    image = image.filter(ImageFilter.BoxBlur(size // 64))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.74 * size, size, size), fill=_vary(rng, (150, 102, 60)))
    spot = (0.06 * size, 0.78 * size, 0.94 * size, 0.98 * size)
    draw.ellipse(spot, fill=_vary(rng, (226, 188, 126)))
    return image


SCENES: dict[str, Scene] = {
    scene.key: scene
    for scene in (
        Scene("beach", ("a sandy beach", "a beach by the sea"), _beach),
        Scene("snow", ("a snowy field", "a field of snow"), _snow),
        Scene("meadow", ("a green meadow", "a meadow with flowers"), _meadow),
        Scene("city", ("a city street at night", "a city at night"), _city),
        Scene("desert", ("a desert", "a hot desert with dunes"), _desert),
        Scene("forest", ("a forest", "a forest of tall trees"), _forest),
        Scene("underwater", ("the bottom of the sea", "an underwater reef"), _underwater),
        Scene("space", ("outer space", "space with stars"), _space),
        Scene("kitchen", ("a kitchen table", "a wooden table in a kitchen"), _kitchen),
        Scene("library", ("a library", "a library full of books"), _library),
        Scene("sunset", ("a lake at sunset", "the sea at sunset"), _sunset),
        Scene("mountains", ("a mountain valley", "a valley with mountains"), _mountains),
        Scene("bricks", ("a brick wall", "an old brick wall"), _bricks),
        Scene("autumn", ("an autumn park", "a park in autumn"), _autumn),
        Scene("rain", ("a rainy street", "a street in the rain"), _rain),
        Scene("stage", ("a theatre stage", "a stage with red curtains"), _stage),
    )
}
