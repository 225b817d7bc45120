from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bootpig_rt.errors import ImageError, NumericalError, ParameterError
from bootpig_rt.images.picture import SUBJECT_SHARE, load_image, prepare_reference, to_pil


def cut_out(
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    colour: tuple[int, int, int] = (200, 0, 0),
) -> Image.Image:
    """A filled rectangle, corners inclusive, on transparent black."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle(box, fill=(*colour, 255))
    return image


def subject_box(pixels: np.ndarray[Any, Any]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not white in [3, H, W]."""
    ys, xs = np.nonzero((pixels < 0.9).any(axis=0))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("size_px", [64, 128, 100])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 200), (10, 20, 109, 69)),
        ((40, 40), (3, 3, 22, 32)),
        ((64, 64), (0, 0, 63, 62)),
        ((500, 30), (0, 10, 499, 19)),
        ((20, 900), (4, 0, 15, 899)),
    ],
)
def test_subject_is_large_and_in_the_middle_of_a_white_square(
    size: tuple[int, int], box: tuple[int, int, int, int], size_px: int
) -> None:
    pixels = prepare_reference(cut_out(size, box), size_px)
    assert pixels.shape == (3, size_px, size_px)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    left, top, right, bottom = subject_box(pixels)
    assert max(right - left, bottom - top) == pytest.approx(SUBJECT_SHARE * size_px, abs=1)
    assert abs(left - (size_px - right)) <= 1
    assert abs(top - (size_px - bottom)) <= 1
    wide, high = box[2] - box[0] + 1, box[3] - box[1] + 1
    got = (right - left) / (bottom - top)
    assert got == pytest.approx(wide / high, rel=0.15, abs=1.5 / min(right - left, bottom - top))
    assert np.all(pixels[:, 0, :] == 1.0)
    middle = pixels[:, (top + bottom) // 2, (left + right) // 2]
    assert middle == pytest.approx([200 / 127.5 - 1, -1, -1], abs=0.01)


def test_pixels_are_between_minus_one_and_one() -> None:
    values = np.random.default_rng(0).integers(0, 2, (90, 70, 3), np.uint8) * 255
    alpha = np.full((90, 70, 1), 255, np.uint8)
    alpha[0] = 0
    pixels = prepare_reference(np.concatenate([values, alpha], axis=2), 64)
    assert -1.0 <= pixels.min() < pixels.max() <= 1.0


@pytest.mark.parametrize("hidden", [(0, 0, 0), (0, 255, 0)])
def test_colour_of_transparent_pixels_never_shows(hidden: tuple[int, int, int]) -> None:
    """Resizing without care would mix the hidden colour into the edge of the subject."""
    image = Image.new("RGBA", (400, 400), (*hidden, 0))
    mask = Image.new("L", (400, 400))
    ImageDraw.Draw(mask).ellipse([50, 50, 349, 349], fill=255)
    image.paste((255, 240, 240), mask=mask)
    image.putalpha(mask)
    pixels = prepare_reference(image, 64)
    assert pixels.min() >= 240 / 127.5 - 1 - 0.02


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    assert prepare_reference(image, 64)[:, 32, 32] == pytest.approx([0, 0, 0], abs=0.01)


def test_faint_leftovers_of_cutting_out_do_not_shrink_the_subject() -> None:
    image = cut_out((200, 200), (80, 80, 119, 119))
    expected = prepare_reference(image, 64)
    image.putpixel((0, 0), (0, 0, 0, 5))
    assert np.array_equal(prepare_reference(image, 64), expected)


def test_picture_on_white_is_cropped_like_a_cut_out() -> None:
    cut = cut_out((300, 200), (10, 20, 109, 69))
    on_white = Image.new("RGB", cut.size, "white")
    on_white.paste(cut, mask=cut)
    assert np.array_equal(prepare_reference(on_white, 64), prepare_reference(cut, 64))


def test_subject_that_touches_one_edge_of_white_paper_is_still_cropped() -> None:
    on_white = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(on_white).ellipse([0, 50, 100, 150], fill="red")
    left, top, right, bottom = subject_box(prepare_reference(on_white, 64))
    assert max(right - left, bottom - top) == pytest.approx(SUBJECT_SHARE * 64, abs=1)


def test_almost_white_jpeg_paper_counts_as_white() -> None:
    paper = np.random.default_rng(0).integers(248, 256, (100, 100, 3), np.uint8)
    paper[40:60, 30:70] = (10, 20, 30)
    left, _, right, _ = subject_box(prepare_reference(paper, 64))
    assert right - left == pytest.approx(SUBJECT_SHARE * 64, abs=1)


def test_photo_is_taken_whole_and_a_warning_tells_so(caplog: pytest.LogCaptureFixture) -> None:
    photo = Image.effect_noise((80, 40), 60).convert("RGB").point(lambda value: value // 2)
    with caplog.at_level(logging.WARNING, logger="bootpig_rt"):
        pixels = prepare_reference(photo, 64, what="reference image 1")
    assert subject_box(pixels) == (0, 16, 64, 48)
    [record] = caplog.records
    assert "reference image 1 has no transparency and no white border" in record.message
    assert "background remover" in record.message


def test_cut_out_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        prepare_reference(cut_out((50, 50), (5, 5, 40, 40)), 64)
    assert not caplog.records


def test_narrow_picture_needs_no_large_square(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    make = Image.new

    def watch(mode: str, size: tuple[int, int], color: Any = 0) -> Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return make(mode, size, color)

    image = cut_out((16384, 8), (0, 0, 16383, 7))
    monkeypatch.setattr(Image, "new", watch)
    pixels = prepare_reference(image, 64)
    assert largest <= 16384 * 8
    assert (pixels < 0.9).any()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "is transparent all over"),
        (Image.new("RGBA", (32, 32), (255, 0, 0, 8)), "is transparent all over"),
        (Image.new("LA", (32, 32), (0, 0)), "is transparent all over"),
        (Image.new("RGB", (32, 32), "white"), "is white all over"),
        (Image.new("L", (32, 32), 250), "is white all over"),
        (np.ones((32, 32, 3)), "is white all over"),
        (cut_out((32, 32), (9, 9, 13, 12)), "subject of 5x4 px, expected at least 8 px"),
        (Image.new("RGB", (1, 1)), "is 1x1 px"),
    ],
)
def test_picture_without_a_subject_is_refused(image: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected) as caught:
        prepare_reference(image, 64, what="reference image 2")
    assert str(caught.value).startswith("reference image 2 ")
    assert "use a" in str(caught.value)


class MiddleRemover:
    """Takes the middle half of a picture."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Image.Image) -> Image.Image:
        assert image.mode == "RGB"
        self.calls += 1
        mask = Image.new("L", image.size)
        width, height = image.size
        mask.paste(255, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
        return mask


def test_remover_cuts_out_what_has_no_transparency() -> None:
    photo = Image.new("RGB", (100, 100), "blue")
    photo.paste("red", (25, 25, 75, 75))
    expected = prepare_reference(cut_out((100, 100), (25, 25, 74, 74), (255, 0, 0)), 64)
    assert np.array_equal(prepare_reference(photo, 64, MiddleRemover()), expected)
    opaque = photo.convert("RGBA")
    assert np.array_equal(prepare_reference(opaque, 64, MiddleRemover()), expected)


def test_cut_out_is_not_cut_again() -> None:
    remover = MiddleRemover()
    prepare_reference(cut_out((100, 100), (5, 5, 90, 90)), 64, remover)
    assert remover.calls == 0


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Image.new("RGB", (20, 30)), r"returned RGB \(20, 30\), expected .* mode L"),
        (Image.new("L", (30, 20)), r"returned L \(30, 20\), expected .* \(20, 30\)"),
        (np.zeros((30, 20)), "returned ndarray"),
        (None, "returned NoneType"),
    ],
)
def test_wrong_result_of_a_remover_is_refused(result: Any, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        prepare_reference(Image.new("RGB", (20, 30)), 64, lambda _image: result)


def test_remover_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(ImageError, match="all background to the remover"):
        prepare_reference(Image.new("RGB", (20, 30)), 64, lambda image: Image.new("L", image.size))


def test_pixels_come_back_as_the_picture_they_were() -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    pixels = values.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    images = to_pil(pixels)
    assert [image.mode for image in images] == ["RGB", "RGB"]
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), values)


def test_overshoot_is_clipped() -> None:
    pixels = np.array([-9.0, -1.001, 1.001, 9.0], np.float32).reshape(1, 1, 2, 2)
    [image] = to_pil(np.repeat(pixels, 3, axis=1))
    assert np.asarray(image)[..., 0].tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_never_becomes_a_black_picture(value: float) -> None:
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    pixels[0, 1, 2, 3] = value
    with pytest.raises(NumericalError, match="NaN or infinity"):
        to_pil(pixels)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match=r"expected \[N, 3, H, W\]"):
        to_pil(np.zeros(shape, np.float32))


def test_loaded_image_may_be_loaded_again() -> None:
    image = cut_out((50, 40), (5, 5, 30, 30))
    assert load_image(load_image(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(9, 700), (301, 129), (640, 257), (1000, 1000)])
def test_a_picture_is_resized_strip_by_strip_as_it_is_as_a_whole(
    mode: str, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(7)
    channels = len(mode)
    noise = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    picture = Image.fromarray(noise)
    box = (0, 0, *size)
    if mode == "RGBA":
        found = picture.getchannel("A").point(lambda v: 255 if v > 8 else 0).getbbox()
        assert found is not None
        box = found
    on_white = Image.new("RGB", size, "white")
    on_white.paste(picture.convert("RGB"), mask=picture.getchannel("A") if channels == 4 else None)
    share = 0.5 if mode == "RGBA" else 1.0
    width, height = box[2] - box[0], box[3] - box[1]
    scale = 32 * share / max(width, height)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = on_white.crop(box).resize(new, Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (32, 32), "white")
    square.paste(resized, ((32 - new[0]) // 2, (32 - new[1]) // 2))
    expected = np.asarray(square, np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    np.testing.assert_array_equal(prepare_reference(picture, 32, subject_share=0.5), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory from /proc")
def test_a_small_file_of_many_pixels_takes_six_bytes_a_pixel(tmp_path: Path, mode: str) -> None:
    """A PNG of 58 kB and 16 megapixels took 175 MB."""
    side = 4096
    picture = Image.new(mode, (side, side), 0)
    if mode == "RGBA":
        picture.paste((255, 0, 0, 255), (100, 100, side - 100, side - 100))
    picture.save(tmp_path / "large.png")
    script = """
import sys
from bootpig_rt.images.picture import prepare_reference

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

prepare_reference(sys.argv[2], 64)
before = peak()
prepare_reference(sys.argv[1], 64)
print(peak() - before)
"""
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    files = [str(tmp_path / "large.png"), str(tmp_path / "small.png")]
    ran = subprocess.run(
        [sys.executable, "-c", script, *files], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 6.5 * side * side


def test_the_most_pixels_are_the_callers_to_set() -> None:
    picture = Image.new("RGB", (64, 32), "red")
    prepare_reference(picture, 16, max_pixels=64 * 32)
    with pytest.raises(ImageError, match=r"is 64x32 px, .* at most 0.001952 megapixels"):
        prepare_reference(picture, 16, max_pixels=64 * 32 - 1)
    file = io.BytesIO()
    picture.save(file, "PNG")
    with pytest.raises(ImageError, match="make it smaller"):
        load_image(file.getvalue(), max_pixels=1000)
    with pytest.raises(ImageError, match="make it smaller"):
        load_image(np.zeros((32, 64, 3), np.uint8), max_pixels=1000)
