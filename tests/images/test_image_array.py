from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bootpig_rt.errors import ImageError
from bootpig_rt.images.image_input import load_image

BYTES = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (BYTES, "RGB"),
        (BYTES[:, ::-1], "RGB"),
        (np.asfortranarray(BYTES), "RGB"),
        (BYTES[:, :, 0], "RGB"),
        (BYTES[:, :, :1], "RGB"),
        (np.dstack([BYTES, BYTES[:, :, 0]]), "RGBA"),
        (BYTES / 255, "RGB"),
        ((BYTES / 255).astype(np.float32), "RGB"),
        ((BYTES[:, :, 0] / 255).astype(np.float16), "RGB"),
        (np.dstack([BYTES, BYTES[:, :, 0]]) / 255, "RGBA"),
    ],
)
def test_array_becomes_the_picture_it_is(array: np.ndarray[Any, Any], mode: str) -> None:
    image = load_image(array)
    assert image.mode == mode
    assert image.size == (24, 16)
    expected = array if array.dtype == np.uint8 else np.rint(array.astype(float) * 255)
    expected = expected[:, :, None] if expected.ndim == 2 else expected
    assert np.array_equal(np.asarray(image), np.broadcast_to(expected, np.asarray(image).shape))


def test_array_is_copied() -> None:
    array = BYTES.copy()
    image = load_image(array)
    array[:] = 0
    assert np.array_equal(np.asarray(image), BYTES)


FLOATS = BYTES / 255


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (FLOATS * 2 - 1, r"in -1..1, expected 0..1; use \(x \+ 1\) / 2"),
        (FLOATS * 255, "in 0..255, expected 0..1; divide by 255"),
        (FLOATS * 1e6, r"in 0..1e\+06, expected 0..1; divide it"),
        (np.where(FLOATS > 0.9, np.nan, FLOATS), "with NaN or infinity"),
        (np.where(FLOATS > 0.9, np.inf, FLOATS), "with NaN or infinity"),
        (BYTES.transpose(2, 0, 1), r"shape \[3, 16, 24\].*array.transpose\(1, 2, 0\)"),
        (BYTES[None], r"shape \[1, 16, 24, 3\].*pass the pictures one by one"),
        (BYTES[0, 0], r"shape \[3\]"),
        (np.zeros((16, 24, 2), np.uint8), r"shape \[16, 24, 2\]"),
        (np.zeros((16, 24, 5), np.uint8), r"shape \[16, 24, 5\]"),
        (np.zeros((16, 0, 3), np.uint8), "is 0x16 px"),
        (np.zeros((1, 1, 3), np.uint8), "is 1x1 px"),
        (BYTES.astype(np.int64), "array of int64, expected uint8 in 0..255 or float in 0..1"),
        (BYTES.astype(np.uint16), "array of uint16"),
        (BYTES > 9, "array of bool"),
        (BYTES.astype(object), "array of object"),
        (np.broadcast_to(np.uint8(0), (20000, 20000)), "is 20000x20000 px"),
    ],
)
def test_bad_array_is_refused(array: np.ndarray[Any, Any], expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        load_image(array)
