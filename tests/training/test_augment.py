"""Augmentation of references: repeatable, on white, and as strong as its preset says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bootpig_rt.training import augment as module
from bootpig_rt.training.augment import PRESETS, augment
from bootpig_rt.training.config import Augmentation
from bootpig_rt.training.raster import Pixels


def picture() -> Pixels:
    """A red square with a blue right half on white, 20 of 40 px."""
    pixels = np.full((40, 40, 3), 255, np.uint8)
    pixels[10:30, 10:30] = (200, 0, 0)
    pixels[10:30, 20:30] = (0, 0, 200)
    return pixels


def only(monkeypatch: pytest.MonkeyPatch, name: Augmentation, **chances: float) -> None:
    """Leave only some parts of a preset on."""
    off = {"flip": 0.0, "jitter": 0.0, "erase": 0.0}
    preset = dataclasses.replace(PRESETS[name], **{**off, **chances})
    monkeypatch.setitem(module.PRESETS, name, preset)


def ink(pixels: Pixels) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(pixels.min(axis=2) < 128)
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


@pytest.mark.parametrize("name", ["paper", "official", "light"])
def test_the_same_random_numbers_change_a_picture_in_the_same_way(name: Augmentation) -> None:
    before = picture()
    results = [augment(np.random.default_rng(seed), before, name) for seed in (3, 3, 4)]
    assert results[0].shape == before.shape
    assert results[0].dtype == np.uint8
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert np.array_equal(before, picture())


def test_no_augmentation_gives_the_picture_itself() -> None:
    before = picture()
    assert augment(np.random.default_rng(0), before, "none") is before


@pytest.mark.parametrize("name", ["paper", "light"])
def test_the_ground_stays_white_unless_colours_are_jittered(
    name: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share_of_white_grounds() -> float:
        whites = []
        for seed in range(60):
            pixels = augment(np.random.default_rng(seed), picture(), name)
            # The subject never fills the square's outermost pixels on all sides.
            whites.append((pixels == 255).all(axis=2).mean() > 0.05)
        return float(np.mean(whites))

    with monkeypatch.context() as patch:
        only(patch, name, flip=0.5, erase=0.5)
        assert share_of_white_grounds() >= 0.9  # a square at full size leaves none
    only(monkeypatch, name, jitter=1.0)
    assert share_of_white_grounds() < 0.7


@pytest.mark.parametrize(("name", "least"), [("paper", 0.4), ("official", 1.0), ("light", 0.8)])
def test_a_subject_is_drawn_at_a_size_of_the_preset(
    name: Augmentation, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, name)
    sizes = []
    for seed in range(80):
        pixels = augment(np.random.default_rng(seed), picture(), name)
        top, bottom, left, right = ink(pixels)
        assert abs((bottom - top) - (right - left)) <= 1  # the aspect ratio is kept
        sizes.append((bottom - top) / 40)
    assert min(sizes) >= least - 0.05
    assert min(sizes) < least + 0.1
    assert max(sizes) > 0.9


def test_a_subject_is_placed_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "paper")
    boxes = [ink(augment(np.random.default_rng(s), picture(), "paper")) for s in range(80)]
    assert min(top for top, *_ in boxes) <= 1
    assert max(bottom for _, bottom, *_ in boxes) >= 39
    assert min(left for *_, left, _ in boxes) <= 1
    assert max(right for *_, right in boxes) >= 39


def test_the_published_forms_flip_half_of_the_pictures_and_the_light_form_none() -> None:
    def flipped(name: Augmentation) -> float:
        count = 0
        for seed in range(150):
            pixels = augment(np.random.default_rng(seed), picture(), name).astype(int)
            left, right = np.array_split(pixels[..., 0] - pixels[..., 2], 2, axis=1)
            count += left.sum() < right.sum()  # red stands on the left before
        return count / 150

    assert 0.3 < flipped("paper") < 0.7
    assert 0.3 < flipped("official") < 0.7
    assert flipped("light") < 0.15  # placing and erasing alone can look like a flip


def test_erasing_paints_a_white_rectangle_of_a_quarter_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_resize_and_place", lambda rng, image, min_size: image)
    only(monkeypatch, "paper", erase=1.0)
    full = np.zeros((40, 40, 3), np.uint8)
    areas = []
    for seed in range(100):
        pixels = augment(np.random.default_rng(seed), full, "paper")
        rows, columns = np.nonzero(pixels[..., 0])
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (pixels == 255).all(axis=2).sum() == area  # a whole rectangle, all white
        areas.append(area / 1600)
    assert max(areas) <= 0.25
    assert min(areas) < 0.05


def test_jitter_keeps_a_hue_within_a_small_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_resize_and_place", lambda rng, image, min_size: image)
    only(monkeypatch, "light", jitter=1.0)
    for seed in range(40):
        pixels = augment(np.random.default_rng(seed), picture(), "light").astype(int)
        red, _, blue = pixels[20, 12]
        assert red > blue + 60
        red, _, blue = pixels[20, 28]
        assert blue > red + 60


def test_an_empty_picture_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "paper")
    blank = np.full((16, 16, 3), 255, np.uint8)
    assert np.array_equal(augment(np.random.default_rng(0), blank, "paper"), blank)
