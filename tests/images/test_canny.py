"""Outlines: those of OpenCV, which published controls were trained with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bootpig_rt.errors import ParameterError
from bootpig_rt.images.canny import canny, canny_map


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    blur=st.integers(0, 3),
    low=st.integers(0, 400),
    more=st.integers(0, 400),
)
def test_outlines_are_those_of_opencv(seed: int, blur: int, low: int, more: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(blocks).resize((53, 41), Image.Resampling.BICUBIC))
    pixels = np.clip(pixels + rng.integers(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    wanted = cv2.Canny(pixels, low, low + more) > 0
    np.testing.assert_array_equal(canny(pixels, low, low + more), wanted)


def test_a_square_has_the_outline_of_a_square() -> None:
    picture = Image.new("RGB", (32, 24), "black")
    picture.paste("white", (8, 6, 20, 18))
    found = np.asarray(canny_map(picture))[..., 0] > 0
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert (rows[0], columns[0]) == (6, 8) or (rows[0], columns[0]) == (5, 7)
    assert 11 <= rows[-1] - rows[0] <= 13
    assert 30 < found.sum() < 60


def test_nothing_has_no_outline_and_transparent_is_white() -> None:
    assert not np.asarray(canny_map(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))).any()


def test_thresholds_are_checked() -> None:
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ParameterError, match="low is 200 and high 100"):
        canny_map(picture, low=200, high=100)
    with pytest.raises(ParameterError, match="high is 5000, expected 0..4080"):
        canny_map(picture, high=5000)
