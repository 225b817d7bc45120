"""Pictures in tiles: bounded launches, every place once, and no seam beside the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.tiles import MOST_LATENTS, MOST_SIDE, OVERLAP, UNUSED, cut, in_tiles
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.models.latent_scale import mean_latents
from bootpig_rt.models.load import load_vae
from tests.compiled import OPENVINO

Array = Any


@pytest.mark.parametrize("side", [1, 95, 96, 97, 100, 128, 168, 169, 256, 257, 384, 512, 999])
def test_tiles_cover_a_side_and_their_weights_add_up_to_one(side: int) -> None:
    tiles = cut(side)
    assert tiles.length <= MOST_SIDE
    assert (len(tiles.starts) == 1) == (side <= MOST_SIDE)
    assert tiles.starts[0] == 0
    assert tiles.starts[-1] + tiles.length == side
    for unit in (1, 8):
        total = np.zeros(side * unit)
        for index, start in enumerate(tiles.starts):
            weights = tiles.weights(index, unit)
            assert weights.min() >= 0
            if index:  # neighbours share enough, and the edge itself is not used
                assert tiles.starts[index - 1] + tiles.length - start >= OVERLAP
                assert not weights[: UNUSED * unit].any()
            total[start * unit : (start + tiles.length) * unit] += weights
        np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_launches_are_bounded_whatever_is_asked_for() -> None:
    seen: list[tuple[int, ...]] = []

    def run(values: Array) -> Array:
        seen.append(values.shape)
        return values.repeat(4, axis=2).repeat(4, axis=3)

    rng = np.random.default_rng(0)
    for shape in ((1, 4, 512, 512), (9, 4, 96, 96), (3, 4, 20, 500), (20, 4, 8, 8)):
        values = rng.standard_normal(shape, dtype=np.float32)
        made = in_tiles(run, values, reads=1, makes=4)
        np.testing.assert_allclose(made, run(values), atol=1e-5)  # nothing lost, nothing twice
        seen.pop()
    assert max(max(shape[2:]) for shape in seen) <= MOST_SIDE
    assert max(rows * height * width for rows, _, height, width in seen) <= MOST_LATENTS
    assert (20, 4, 8, 8) in seen  # small ones go together


def test_tiles_of_one_picture_have_one_shape() -> None:
    seen = set()

    def run(pixels: Array) -> Array:
        seen.add(pixels.shape)
        return pixels[:, :1, ::8, ::8]

    pixels = np.random.default_rng(0).standard_normal((2, 3, 8 * 130, 8 * 100), dtype=np.float32)
    made = in_tiles(run, pixels, reads=8, makes=1)
    np.testing.assert_allclose(made, pixels[:, :1, ::8, ::8], atol=1e-6)
    assert len(seen) == 1


def borders(size: int, *, unit: int) -> Array:
    """Whether a place along a side is where tiles fade into each other."""
    tiles, found = cut(size), np.zeros(size * unit, bool)
    for before, start in zip(tiles.starts, tiles.starts[1:], strict=False):
        found[start * unit : (before + tiles.length) * unit] = True
    return found


def along_and_away(error: Array, *, unit: int) -> tuple[float, float]:
    """Root mean square error where tiles meet, and everywhere else; of [N, C, H, W]."""
    down, across = (borders(size // unit, unit=unit) for size in error.shape[2:])
    meets = down[:, np.newaxis] | across
    square = (error.astype(np.float64) ** 2).mean(axis=(0, 1))
    return float(square[meets].mean() ** 0.5), float(square[~meets].mean() ** 0.5)


def steps_at_seams(made: Array, whole: Array, *, unit: int) -> tuple[float, float]:
    """How much steeper neighbouring rows and columns are than those of the whole: the largest mean
    over a line that lies where tiles meet, and over any other."""
    inside, outside = [0.0], [0.0]
    for axis in (2, 3):
        extra = np.abs(np.diff(made - whole, axis=axis))
        other = tuple(each for each in range(4) if each != axis)
        lines = extra.mean(axis=other)
        meets = borders(made.shape[axis] // unit, unit=unit)[1:]
        inside.append(float(lines[meets].max(initial=0)))
        outside.append(float(lines[~meets].max(initial=0)))
    return max(inside), max(outside)


@pytest.fixture(scope="module")
def smooth_latents() -> Callable[..., Array]:
    """Latents with large and small structure, as pictures have: not noise alone."""

    def make(channels: int, height: int, width: int) -> Array:
        rng = torch.Generator().manual_seed(0)
        total = torch.zeros(1, channels, height, width)
        for coarse, weight in ((16, 1.0), (4, 0.5), (1, 0.2)):
            small = torch.randn(
                1, channels, -(-height // coarse), -(-width // coarse), generator=rng
            )
            grown = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic")
            total += weight * grown
        return total.numpy()

    return make


@pytest.mark.slow
def test_a_large_picture_of_the_shipped_pair_has_no_seams() -> None:
    vae: Any = load_vae(default_model() / "vae")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    owl = Image.open(default_model().parent / "subjects" / "owl.png").convert("RGBA")
    scene = Image.new("RGBA", owl.size, (120, 180, 220, 255))
    scene.alpha_composite(owl)
    large = scene.convert("RGB").resize((104 * factor, 120 * factor), Image.Resampling.BICUBIC)
    pixels = np.asarray(large, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1

    def encode(values: Array) -> Array:
        with torch.inference_mode():
            found: Array = mean_latents(vae, torch.from_numpy(values.copy())).numpy()
        return found

    def decode(values: Array) -> Array:
        with torch.inference_mode():
            made: Array = vae.decode(torch.from_numpy(values.copy())).sample.numpy()
        return made

    latents = encode(pixels)
    check_against_the_whole(in_tiles(encode, pixels, reads=factor, makes=1), latents, unit=1)
    made = in_tiles(decode, latents, reads=1, makes=factor)
    check_against_the_whole(made, decode(latents), unit=factor)


def check_against_the_whole(made: Array, whole: Array, *, unit: int) -> None:
    """The norms of a tile see less than the picture: 4 % of difference, and no edge of it shows.

    Without norms there is rounding alone, and it may lie anywhere.
    """
    error = made - whole
    relative = float(np.linalg.norm(error) / np.linalg.norm(whole))
    rounding = 1e-5 * float(np.abs(whole).max())
    along, away = along_and_away(error, unit=unit)
    inside, outside = steps_at_seams(made, whole, unit=unit)
    assert relative < 0.06
    assert along <= 1.25 * away + rounding
    assert inside <= 1.05 * outside + rounding


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_every_backend_decodes_and_encodes_large_pictures_in_tiles(
    backend: str, tiny_bundle_folder: Path, smooth_latents: Callable[..., Array]
) -> None:
    pytest.importorskip(backend)
    options = OPENVINO if backend == "openvino" else backend
    loaded: Any = create_backend(options, tiny_bundle_folder, device="cpu")
    latents = smooth_latents(4, 100, 24)
    made = loaded.decode(latents)
    assert made.shape == (1, 3, 400, 96)
    tiles = cut(100)
    assert len(tiles.starts) == 2
    # Each end is what a tile alone gives, to the last bit: nothing larger was run.
    for start, kept in ((0, slice(0, 40)), (tiles.starts[1], slice(-40, None))):
        alone = loaded.decode(latents[:, :, start : start + tiles.length])
        np.testing.assert_array_equal(made[:, :, kept], alone[:, :, kept])
    pixels = made.clip(-1, 1)
    again = loaded.encode_image(pixels)
    assert again.shape == latents.shape
    alone = loaded.encode_image(pixels[:, :, : 4 * tiles.length])
    np.testing.assert_array_equal(again[:, :, :10], alone[:, :, :10])
