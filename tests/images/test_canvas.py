"""Given pictures and masks: what is taken, what is refused, and what comes out untouched."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ImageError
from bootpig_rt.images.canvas import Canvas, soft_edge

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
MASK = np.zeros((24, 40), np.bool_)
MASK[6:19, 9:30] = True


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


GREY = Image.fromarray(MASK.astype(np.uint8) * 255)


def test_a_mask_is_read_from_whatever_holds_it(tmp_path: Path) -> None:
    GREY.save(tmp_path / "mask.png")
    sources: list[Any] = [
        MASK,
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.float32),
        GREY,
        GREY.convert("1"),
        GREY.convert("RGB"),
        GREY.convert("P"),
        png(GREY),
        tmp_path / "mask.png",
    ]
    for source in sources:
        canvas = Canvas.load(PIXELS, source)
        assert canvas.mask is not None
        np.testing.assert_array_equal(canvas.mask, MASK)
        np.testing.assert_array_equal(canvas.pixels, PIXELS)


def test_a_transparent_part_is_what_is_drawn_in_the_manner_of_openai() -> None:
    alpha = Image.fromarray(np.where(MASK, 0, 255).astype(np.uint8))
    picture = GREY.convert("RGBA")
    picture.putalpha(alpha)
    canvas = Canvas.load(PIXELS, alpha_mask=png(picture))
    np.testing.assert_array_equal(canvas.mask, MASK)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (MASK[:, :32], "mask_image is 32x24 px, expected 40x24 px as the image; make both"),
        (np.zeros_like(MASK), "mask_image is black all over, so nothing would be drawn; make wh"),
        (np.ones_like(MASK), "mask_image is white all over, so nothing of the image would stay;"),
        (PIXELS, r'mask_image is in colour, expected black and white .*convert\("L"\)'),
        (GREY.convert("LA"), "mask_image is with transparency"),
        (Image.merge("LA", (GREY, GREY)), "mask_image is with transparency, expected black and"),
        (MASK.astype(np.int32), "mask_image is an array of int32, expected uint8 in 0..255"),
        (Path("nowhere.png"), "cannot read mask_image 'nowhere.png'"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused_with_what_to_do(mask: Any, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        Canvas.load(PIXELS, mask)


def test_a_mask_by_transparency_needs_some_and_not_all_of_it() -> None:
    for source, told in (
        (GREY.convert("RGB"), "mask has no alpha channel, expected a PNG that is transparent"),
        (Image.new("RGBA", (40, 24), "white"), "mask is opaque all over, so nothing would be"),
        (Image.new("RGBA", (40, 24)), "mask is transparent all over, so nothing of the image"),
        (Image.new("RGBA", (40, 32)), "mask is 40x32 px, expected 40x24 px as the image"),
    ):
        with pytest.raises(ImageError, match=told):
            Canvas.load(PIXELS, alpha_mask=source)


def test_a_picture_with_transparent_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="image has transparent pixels, expected an opaque"):
        Canvas.load(Image.merge("LA", (GREY, GREY)))
    opaque = Image.fromarray(PIXELS).convert("RGBA")
    np.testing.assert_array_equal(Canvas.load(opaque).pixels, PIXELS)


def test_pixels_outside_the_mask_come_out_as_they_went_in() -> None:
    drawn = Image.fromarray(255 - PIXELS)
    for edge_px in (0, 1, 5, 200):
        pasted = np.asarray(Canvas.load(PIXELS, MASK).paste(drawn, edge_px))
        np.testing.assert_array_equal(pasted[~MASK], PIXELS[~MASK])
    hard = np.asarray(Canvas.load(PIXELS, MASK).paste(drawn, 0))
    np.testing.assert_array_equal(hard[MASK], 255 - PIXELS[MASK])
    assert Canvas.load(PIXELS).paste(drawn, 4) is drawn


def test_an_edge_rises_over_its_width_inside_the_mask() -> None:
    mask = np.zeros((9, 30), np.bool_)
    mask[:, 10:] = True
    share = soft_edge(mask, 3)
    np.testing.assert_allclose(share[4, 8:16], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    # Beyond the picture's own border nothing fades: the mask goes on there.
    np.testing.assert_array_equal(share[0], share[4])
    np.testing.assert_array_equal(share[:, -1], 1)


def test_latents_are_drawn_where_any_of_their_pixels_is() -> None:
    mask = np.zeros((16, 24), np.bool_)
    mask[7, 8:17] = True
    latents = Canvas(np.zeros((16, 24, 3), np.uint8), mask).latent_mask(8)
    np.testing.assert_array_equal(latents, [[[0, 1, 1], [0, 0, 0]]])
    np.testing.assert_array_equal(Canvas(np.zeros((16, 24, 3), np.uint8)).latent_mask(8), 1)


def test_the_encoder_is_given_the_picture_and_what_of_it_stays() -> None:
    both = Canvas.load(PIXELS, MASK).for_encoder()
    assert both.shape == (2, 3, 24, 40)
    assert both.dtype == np.float32
    np.testing.assert_allclose(both[0], PIXELS.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(both[1][:, MASK], 0)
    np.testing.assert_array_equal(both[1][:, ~MASK], both[0][:, ~MASK])
    assert Canvas.load(PIXELS).for_encoder().shape == (1, 3, 24, 40)


def test_a_canvas_is_told_by_its_pixels_and_its_mask() -> None:
    other = MASK.copy()
    other[0, 0] = True
    given = [(PIXELS, MASK), (PIXELS, other), (PIXELS, None), (255 - PIXELS, MASK)]
    assert len({Canvas.load(*one).fingerprint for one in given}) == 4
    canvas = Canvas.load(PIXELS, MASK)
    assert canvas.fingerprint == Canvas.load(PIXELS.copy(), GREY).fingerprint
    with pytest.raises(ValueError, match="read-only"):
        canvas.pixels[0, 0] = 0
