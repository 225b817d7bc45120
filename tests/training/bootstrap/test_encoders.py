"""Encoders: vectors of length 1 that are alike where pictures are, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bootpig_rt.errors import CheckpointError
from bootpig_rt.training.bootstrap.encoders import Agreement, make_encoder, perceptual_hash


def pictures(draw_disc: Any) -> list[Any]:
    return [draw_disc(radius=r, seed=k, centre=(0.3 + r, 0.5))[0] for k, r in enumerate((0.1, 0.3))]


@pytest.mark.parametrize("name", ["phash", "efficientnet", "clip_folder", "dino_folder"])
def test_an_encoder_gives_unit_vectors_that_depend_on_their_picture_alone(
    name: str, draw_disc: Any, request: pytest.FixtureRequest
) -> None:
    if name.endswith("folder"):
        name = str(request.getfixturevalue(name))
    encode = make_encoder(name, "cpu", "auto")
    first, second = pictures(draw_disc)
    together = encode([first, second])
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert np.allclose(encode([second])[0], together[1], atol=1e-4)
    assert not np.allclose(together[0], together[1], atol=1e-4)


def test_a_perceptual_hash_sees_shapes_and_neither_noise_nor_brightness() -> None:
    rng = np.random.default_rng(9)
    coarse = rng.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    first, second = (cv2.resize(one, (64, 64), interpolation=cv2.INTER_CUBIC) for one in coarse)
    noise = rng.integers(-6, 7, first.shape)
    noisy = (first.astype(int) + noise).clip(0, 255).astype(np.uint8)
    darker = (first * 0.8).astype(np.uint8)
    same, dark, other = perceptual_hash([noisy, darker, second]) @ perceptual_hash([first])[0]
    assert same > 0.8
    assert dark > 0.9
    assert other < 0.5


def test_a_bit_of_a_perceptual_hash_costs_a_thirty_second(draw_disc: Any) -> None:
    (row,) = perceptual_hash([draw_disc()[0]])
    assert row.shape == (64,)
    other = row.copy()
    other[5] *= -1
    assert row @ other == pytest.approx(1 - 1 / 32)


def test_agreement_is_the_cosine_of_each_picture_and_its_own_caption(
    clip_folder: Path, draw_disc: Any
) -> None:
    agreement = Agreement(str(clip_folder), "cpu", "auto")
    both = pictures(draw_disc)
    captions = ["a photo of a dog", "a photo of a much larger dog, on a beach"]
    together = agreement(both, captions)
    assert together.shape == (2,)
    assert np.all(np.abs(together) <= 1)
    for k in range(2):
        assert agreement(both[k : k + 1], captions[k : k + 1])[0] == pytest.approx(
            together[k], abs=1e-4
        )
    swapped = agreement(both, captions[::-1])
    assert not np.allclose(swapped, together, atol=1e-4)
    # A caption longer than the model reads is cut, not an error.
    assert agreement(both[:1], ["word " * 200]).shape == (1,)


def test_a_folder_of_another_kind_is_named(sam_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="encoder .* is of type 'sam', expected clip, vit"):
        make_encoder(str(sam_folder), "cpu", "auto")
    with pytest.raises(CheckpointError, match="CLIP model .* is of type 'sam', expected clip"):
        Agreement(str(sam_folder), "cpu", "auto")
