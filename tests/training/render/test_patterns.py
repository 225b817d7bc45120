"""Named looks: what a name promises is what is drawn, and tiles repeat without a seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import InputError, StorageError
from bootpig_rt.training.render.cutout import card_of
from bootpig_rt.training.render.patterns import (
    COLOURS,
    MATERIALS,
    PATTERNS,
    TEXTURE_FOLDER,
    Pattern,
    draw_pattern,
    noise_tile,
    read_material,
)


@pytest.fixture(scope="module")
def tiles() -> dict[Pattern, Any]:
    """All patterns in red and white."""
    return {pattern: draw_pattern(pattern, "red", "white") for pattern in PATTERNS}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_shows_its_colours_and_each_is_told_from_the_others(
    pattern: Pattern, tiles: dict[Pattern, Any]
) -> None:
    tile = tiles[pattern]
    red, white = (np.array(COLOURS[name]) for name in ("red", "white"))
    shares = [float((np.abs(tile[..., :3] - c).max(axis=-1) < 8).mean()) for c in (red, white)]
    if pattern == "plain":
        assert shares == [1.0, 0.0]
    else:
        assert min(shares) > 0.1
        assert sum(shares) > 0.75
    others = [drawn for other, drawn in tiles.items() if other != pattern]
    assert all(np.abs(tile.astype(int) - other).mean() > 5 for other in others)


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_a_tile_repeats_without_a_seam(pattern: Pattern) -> None:
    tile = draw_pattern(pattern, "navy", "yellow")[..., :3].astype(float)
    for axis in (0, 1):
        steps = np.abs(np.diff(tile, axis=axis)).mean(axis=(1 - axis, 2))
        seam = np.abs(np.take(tile, 0, axis) - np.take(tile, -1, axis)).mean()
        assert seam <= steps.max() + 1


def test_noise_repeats_without_a_seam_and_keeps_its_colour() -> None:
    tile = noise_tile(1, (90, 150, 60), 10, octaves=(4, 16)).astype(float)
    assert tile.mean(axis=(0, 1)) == pytest.approx([90, 150, 60], abs=2)
    seam = np.abs(tile[0] - tile[-1]).mean()
    assert seam <= 2 * np.abs(np.diff(tile, axis=0)).mean()
    assert np.array_equal(noise_tile(1, (90, 150, 60), 10, octaves=(4, 16)), tile)


def test_materials_are_read_by_name_and_missing_ones_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / TEXTURE_FOLDER / MATERIALS["wooden"]
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 32), (150, 100, 50)).save(path)
    tile = read_material(tmp_path, "wooden")
    assert tile.shape == (256, 256, 4)
    assert tuple(tile[0, 0]) == (150, 100, 50, 255)
    with pytest.raises(StorageError, match="fetch-data --set models-3d"):
        read_material(tmp_path, "brick")
    with pytest.raises(InputError, match="expected one of wooden"):
        read_material(tmp_path, "velvet")


def test_a_drawing_becomes_a_card_that_stands_on_its_lowest_pixel() -> None:
    sprite = np.zeros((24, 24, 4), np.uint8)
    sprite[4:20, 8:16] = (200, 10, 10, 255)
    card = card_of(sprite)
    assert card.positions[:, 1].min() == 0
    assert np.ptp(card.positions, axis=0) == pytest.approx([0.5, 1.0, 0.0])
    texture = card.parts[0].texture
    assert texture is not None
    assert texture.shape == (16, 8, 4)
