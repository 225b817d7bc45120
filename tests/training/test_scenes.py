"""Scenes: repeatable, varied, and different enough to be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from bootpig_rt.training.scenes import SCENES, draw_scene
from bootpig_rt.training.splits import load_splits


def test_the_held_out_combinations_name_known_scenes() -> None:
    named = {scene for scenes in load_splits().held_out_scenes().values() for scene in scenes}
    assert named <= set(SCENES)
    assert len(SCENES) == 16


@pytest.mark.parametrize("key", SCENES)
def test_the_same_random_numbers_draw_the_same_scene(key: str) -> None:
    first, again, other = (draw_scene(key, np.random.default_rng(seed), 32) for seed in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size_px", [16, 64, 65])
def test_a_scene_is_drawn_at_any_size(size_px: int) -> None:
    assert draw_scene("stage", np.random.default_rng(0), size_px).shape == (size_px, size_px, 3)


def test_every_scene_has_two_phrases_and_its_own_key() -> None:
    for key, scene in SCENES.items():
        assert scene.key == key
        assert len(scene.phrases) == 2


def test_scenes_are_told_apart_by_their_mean_pictures() -> None:
    def drawn(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        rng = np.random.default_rng(seed)
        return np.stack([draw_scene(key, rng, 16) for key in SCENES]).astype(np.float32)

    means = np.mean([drawn(seed) for seed in range(12)], axis=0).reshape(len(SCENES), -1)
    right = 0
    for seed in range(100, 104):
        pictures = drawn(seed).reshape(len(SCENES), -1)
        distances = np.linalg.norm(pictures[:, None] - means[None], axis=-1)
        right += int((distances.argmin(axis=1) == np.arange(len(SCENES))).sum())
    assert right >= 0.9 * 4 * len(SCENES)
