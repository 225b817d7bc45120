"""Named colours and patterns: what an untextured model may be given, and tiles of grounds.

A pattern is a tile that repeats without a seam. All are drawn here but for those of photographs,
which are read from the fetched textures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import InputError, StorageError, describe_os_error
from bootpig_rt.training.render.mesh import Pixels

Rgb = tuple[int, int, int]
TILE_PX = 128

COLOURS: dict[str, Rgb] = {
    "red": (206, 38, 38),
    "orange": (238, 124, 28),
    "yellow": (245, 205, 48),
    "green": (52, 150, 66),
    "lime": (156, 206, 58),
    "turquoise": (44, 186, 178),
    "blue": (42, 92, 200),
    "navy": (26, 38, 96),
    "purple": (126, 58, 172),
    "pink": (240, 132, 172),
    "brown": (124, 78, 44),
    "beige": (222, 200, 164),
    "white": (240, 240, 238),
    "grey": (136, 138, 142),
    "black": (36, 36, 40),
}

Pattern = Literal[
    "plain", "striped", "dotted", "chequered", "zigzag", "banded", "speckled", "starry"
]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

MATERIALS: dict[str, str] = {
    "wooden": "wood_light.png",
    "granite": "granite.png",
    "brick": "brick.jpg",
    "tiled": "tiles.jpg",
    "tiger": "tiger.jpg",
    "rainbow": "rainbow.jpg",
    "swirly": "swirl.jpg",
    "magma": "magma.jpg",
    "red paisley": "paisleys/red_paisley.jpg",
    "blue paisley": "paisleys/blue_paisley.jpg",
    "green paisley": "paisleys/green_paisley.jpg",
    "purple paisley": "paisleys/purple_paisley.jpg",
    "yellow paisley": "paisleys/yellow_paisley.jpg",
}
"""Looks that are read from the fetched textures, by the word that names them."""
TEXTURE_FOLDER = "vima_bench/tasks/assets/textures"


def draw_pattern(pattern: Pattern, first: str, second: str) -> Pixels:
    """Draw a tile of two named colours, uint8 [128, 128, 4]; `plain` shows the first alone."""
    share = _SHARES[pattern](*_grid())[..., None]
    a, b = (np.array(COLOURS[name], np.float32) for name in (first, second))
    rgb = a * (1 - share) + b * share
    return _opaque((rgb + 0.5).astype(np.uint8))


def read_material(folder: Path, name: str) -> Pixels:
    """Read one of `MATERIALS` from the folder of the source `textures`, uint8 [H, W, 4].

    Raises:
        InputError: There is no such material.
        StorageError: It is not there, or cannot be read.
    """
    if name not in MATERIALS:
        raise InputError(f"material {name!r} is not known, expected one of {', '.join(MATERIALS)}")
    path = folder / TEXTURE_FOLDER / MATERIALS[name]
    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((2 * TILE_PX, 2 * TILE_PX), Image.Resampling.BOX)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {describe_os_error(error)}; run `bootpig-rt fetch-data --set "
            "models-3d`"
        ) from error
    return _opaque(np.asarray(small, np.uint8))


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Horizontal and vertical place on a tile, 0 to 1, drawn at four times the size."""
    axis = (np.arange(4 * TILE_PX) + 0.5) / (4 * TILE_PX)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _reduced(share: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(share.reshape(TILE_PX, 4, TILE_PX, 4).mean(axis=(1, 3)))


def _plain(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return _reduced(np.zeros_like(x, bool))


def _striped(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return _reduced(((x + y) * 2) % 1 > 0.5)


def _banded(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return _reduced((y * 2) % 1 > 0.5)


def _chequered(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return _reduced(((x * 4).astype(int) + (y * 4).astype(int)) % 2 == 1)


def _zigzag(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return _reduced((y * 3 + np.abs((x * 3) % 1 - 0.5)) % 1 > 0.5)


def _dotted(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros_like(x, bool)
    for shift in (0.0, 0.5):
        u, v = (2 * x + shift) % 1 - 0.5, (2 * y + shift) % 1 - 0.5
        found |= u * u + v * v < 0.24**2
    return _reduced(found)


def _speckled(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    rng = np.random.default_rng(7)
    found = np.zeros_like(x, bool)
    for u, v, radius in zip(
        rng.random(44), rng.random(44), rng.uniform(0.02, 0.06, 44), strict=True
    ):
        du, dv = (x - u + 0.5) % 1 - 0.5, (y - v + 0.5) % 1 - 0.5
        found |= du * du + dv * dv < radius**2
    return _reduced(found)


def _starry(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros_like(x, bool)
    for shift in (0.0, 0.5):
        u, v = (2 * x + shift) % 1 - 0.5, (2 * y + shift) % 1 - 0.5
        angle, radius = np.arctan2(u, v), np.hypot(u, v)
        wave = np.abs((angle / (2 * np.pi) * 5) % 1 - 0.5) * 2
        found |= radius < 0.13 + 0.19 * wave**1.5
    return _reduced(found)


_SHARES: dict[
    Pattern, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "chequered": _chequered,
    "zigzag": _zigzag,
    "banded": _banded,
    "speckled": _speckled,
    "starry": _starry,
}


def noise_tile(seed: int, colour: Rgb, spread: float, *, octaves: tuple[int, ...]) -> Pixels:
    """A tile of soft noise about a colour, uint8 [128, 128, 3]: sand, grass, carpet.

    Args:
        seed: Of the noise.
        colour: In sRGB.
        spread: How far levels go from it.
        octaves: Cells along a side, from coarse to fine; each counts as much.
    """
    rng = np.random.default_rng(seed)
    levels = np.zeros((TILE_PX, TILE_PX), np.float32)
    for cells in octaves:
        cell = np.tile(rng.standard_normal((cells, cells)).astype(np.float32), (3, 3))
        wide = Image.fromarray(cell).resize((3 * TILE_PX, 3 * TILE_PX), Image.Resampling.BICUBIC)
        levels += np.asarray(wide)[TILE_PX : 2 * TILE_PX, TILE_PX : 2 * TILE_PX]
    levels *= spread / max(float(levels.std()), 1e-6)
    shade = np.array(colour, np.float32) * (1 + levels[..., None] / 255)
    return np.clip(shade, 0, 255).astype(np.uint8)


def _opaque(rgb: Pixels) -> Pixels:
    return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], axis=-1)
