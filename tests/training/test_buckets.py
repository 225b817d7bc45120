"""Sizes: which bucket a picture takes, and what is kept of it."""

from __future__ import annotations

import numpy as np
import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.buckets import Sizing, check_sizes, fit, fit_reference

BUCKETS = ((512, 512), (448, 576), (576, 448), (256, 256))
SIZING = Sizing(BUCKETS, 512)


def test_a_picture_takes_the_bucket_of_the_nearest_shape_and_then_of_the_nearest_size() -> None:
    sizes = [(512, 512), (200, 200), (900, 900), (450, 570), (1000, 800), (576, 448), (90, 10)]
    assert SIZING.bucket_of(np.array(sizes)).tolist() == [0, 3, 0, 1, 2, 2, 2]


def test_pictures_that_are_fitted_are_counted() -> None:
    sizes = np.array([(512, 512)] * 3 + [(256, 256), (100, 130), (576, 448), (1000, 1000)])
    assert SIZING.count(sizes) == ([4, 1, 1, 1], 2, 1)


def test_sizes_that_the_model_cannot_take_are_refused_with_the_nearest() -> None:
    check_sizes(BUCKETS, 64, "samples.buckets")
    with pytest.raises(ConfigError, match=r"buckets has 500 x 90, .*of 64 px.* is \[512, 64\]"):
        check_sizes([(512, 512), (500, 90)], 64, "samples.buckets")


def test_a_picture_of_the_size_is_left_as_it_is() -> None:
    target, mask = np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8)
    assert fit(target, mask, (12, 8)) == (target, mask)
    reference = np.zeros((9, 9, 3), np.uint8)
    assert fit_reference(reference, 9) is reference


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (24, 48)])
@pytest.mark.parametrize("place", [0, 30, 80])
def test_what_is_cut_off_is_far_from_the_subject(size: tuple[int, int], place: int) -> None:
    target = np.full((60, 100, 3), 200, np.uint8)
    mask = np.zeros((60, 100), np.uint8)
    mask[20:40, place : place + 20] = 255
    target[mask > 0] = (255, 0, 0)
    fitted, covered = fit(target, mask, size)
    assert fitted.shape == (size[1], size[0], 3)
    assert covered.shape == (size[1], size[0])
    scale = max(size[0] / 100, size[1] / 60)
    if size != (24, 48):  # there the subject alone is nearly as wide as what is kept
        assert covered.sum() / 255 == pytest.approx(400 * scale**2, rel=0.05)
    inside = covered > 250
    assert inside.any()
    assert np.abs(fitted[inside].astype(int) - (255, 0, 0)).max() < 40  # the mask moves along


def test_a_picture_without_a_subject_is_cut_in_the_middle() -> None:
    target = np.zeros((10, 30, 3), np.uint8)
    target[:, 10:20] = 255
    fitted, _ = fit(target, np.zeros((10, 30), np.uint8), (10, 10))
    assert (fitted == 255).all()


def test_all_of_a_reference_is_kept_on_white() -> None:
    reference = np.full((20, 10, 3), 40, np.uint8)
    square = fit_reference(reference, 40)
    assert square.shape == (40, 40, 3)
    assert (square[:, :8] == 255).all()
    assert (square[:, -8:] == 255).all()
    assert (square[:, 12:28] == 40).all()
