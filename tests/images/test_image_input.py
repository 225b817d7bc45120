from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from bootpig_rt.errors import ImageError
from bootpig_rt.images.image_input import load_image

RED, BLUE, GREEN = (200, 30, 40), (20, 60, 180), (30, 160, 70)


def picture(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Upper left red, upper right blue, lower half green: every turn and flip shows."""
    image = Image.new("RGB", size, GREEN)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, size[0] // 2 - 1, size[1] // 2 - 1], fill=RED)
    draw.rectangle([size[0] // 2, 0, size[0], size[1] // 2 - 1], fill=BLUE)
    return image


def encode(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def animation(name: str) -> bytes:
    frames = [picture(), Image.new("RGB", (24, 16), "white"), Image.new("RGB", (24, 16))]
    return encode(frames[0], name, save_all=True, append_images=frames[1:])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header promises any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(kind, data)
        for kind, data in [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b"")]
    )


def bmp_of(width: int, height: int) -> bytes:
    whole = bytearray(encode(picture(), "BMP"))
    whole[18:26] = struct.pack("<ii", width, height)
    return bytes(whole)


def jpeg_of(width: int, height: int) -> bytes:
    whole = bytearray(encode(picture(), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def webp_of(width: int, height: int) -> bytes:
    whole = bytearray(encode(picture().convert("RGBA"), "WEBP", icc_profile=b"any"))
    assert whole[12:16] == b"VP8X"
    whole[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(whole)


def with_orientation(image: Image.Image, tag: int, name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encode(image, name, exif=exif.tobytes(), **({"quality": 95} if name == "JPEG" else {}))


SVG = b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>'

# What is wrong, the file's contents, what the message must say.
BAD_FILES: list[tuple[str, Callable[[], bytes], str]] = [
    ("zero bytes", lambda: b"", "is empty (0 bytes), expected PNG, JPEG, WebP or BMP"),
    ("text", lambda: b"hello, this is no picture", "is not a picture, expected PNG, JPEG"),
    ("noise", lambda: random.Random(0).randbytes(999), "is not a picture, expected PNG, JPEG"),
    ("svg", lambda: SVG, "is SVG, expected PNG, JPEG, WebP or BMP; convert it to PNG"),
    ("bare svg", lambda: b"\n <svg width='9'/>", "is SVG, expected"),
    ("pdf", lambda: b"%PDF-1.7\n", "is PDF, expected"),
    ("eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "is EPS or PostScript, expected"),
    ("real eps", lambda: encode(picture(), "EPS"), "is EPS or PostScript, expected"),
    ("real pdf", lambda: encode(picture(), "PDF"), "is PDF, expected"),
    ("html", lambda: b"<!doctype html><html></html>", "is HTML or XML, expected"),
    ("gif", lambda: encode(picture(), "GIF"), "is GIF, expected"),
    ("animated gif", lambda: animation("GIF"), "is GIF, expected"),
    ("tiff", lambda: encode(picture(), "TIFF"), "is TIFF, expected"),
    ("ico", lambda: encode(picture(), "ICO"), "is ICO, expected"),
    ("heic", lambda: b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC or video, expected"),
    ("zip", lambda: b"PK\3\4" + bytes(99), "is ZIP, expected"),
    ("fits", lambda: b"SIMPLE  =                    T", "is FITS, expected"),
    ("animated png", lambda: animation("PNG"), "is animated (3 frames), expected a still picture"),
    ("animated webp", lambda: animation("WEBP"), "is animated (3 frames), expected a still"),
    ("1x1", lambda: encode(Image.new("RGB", (1, 1))), "is 1x1 px, expected 8 to 16384 px a side"),
    ("1x8000", lambda: encode(Image.new("L", (1, 8000))), "is 1x8000 px, expected 8 to 16384"),
    ("8000x1", lambda: encode(Image.new("L", (8000, 1))), "use a larger picture"),
    ("7x8", lambda: encode(Image.new("L", (7, 8))), "is 7x8 px"),
    ("20000x20000 png", lambda: png_of(20000, 20000), "is 20000x20000 px, expected 8 to 16384"),
    ("20000x20000 jpeg", lambda: jpeg_of(20000, 20000), "is 20000x20000 px, expected"),
    ("20000x20000 bmp", lambda: bmp_of(20000, 20000), "is 20000x20000 px, expected"),
    ("largest png", lambda: png_of(2**31 - 1, 2**31 - 1), "make it smaller"),
    ("16385 px", lambda: png_of(16385, 8), "is 16385x8 px"),
    ("65 megapixels", lambda: png_of(8192, 8193), "at most 64 megapixels; make it smaller"),
    ("95 megapixels", lambda: png_of(9750, 9750), "at most 64 megapixels; make it smaller"),
    ("webp canvas", lambda: webp_of(16384, 16384), "megapixels; make it smaller|damaged"),
    ("truncated png", lambda: encode(noise())[:-4000], "is damaged or cut short, expected a whole"),
    ("truncated jpeg", lambda: encode(noise(), "JPEG")[:-2000], "expected a whole JPEG file"),
    ("truncated webp", lambda: encode(noise(), "WEBP")[:-900], "expected a whole WebP file"),
    ("truncated bmp", lambda: encode(noise(), "BMP")[:-900], "expected a whole BMP file"),
    ("png head only", lambda: encode(picture())[:20], "is damaged or cut short"),
    ("jpeg head only", lambda: encode(picture(), "JPEG")[:8], "is damaged or cut short"),
]


def noise() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("data", "expected"), [pytest.param(b, c, id=a) for a, b, c in BAD_FILES])
def test_bad_file_is_refused_in_one_line_that_says_what_to_do(
    tmp_path: Path, data: Callable[[], bytes], expected: str
) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(data())
    for source in (path, str(path), path.read_bytes()):
        with pytest.raises(ImageError) as caught:
            load_image(source, what="reference image 2")
        message = str(caught.value)
        assert any(part in message for part in expected.split("|")), message
        assert message.startswith("reference image 2 ")
        assert ("dog.png" in message) == (source != path.read_bytes())
        assert "; " in message
        assert "\n" not in message
        assert " 0x" not in message  # no memory addresses of the decoder


@pytest.mark.parametrize("make", [png_of, jpeg_of, bmp_of])
def test_size_is_refused_before_a_pixel_is_decoded(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[int, int], bytes]
) -> None:
    data = make(20000, 20000)

    def decode(_image: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match="20000x20000"):
        load_image(data)


def test_limit_of_python_image_library_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="20000x20000"):
        load_image(png_of(20000, 20000))


# Path under a folder made by the test, what the message must say.
BAD_PATHS = [
    ("missing.png", "cannot read .*no such file or directory; check the path"),
    ("folder", "is a folder, expected a picture file"),
    ("pipe", "is no plain file"),
    ("file.txt/a.png", "one of its parts is a file"),
    ("nul\0.png", "is no possible path"),
    ("x" * 5000, "too long"),
]


@pytest.mark.parametrize(("name", "expected"), BAD_PATHS)
def test_bad_path_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match=expected) as caught:
        load_image(f"{tmp_path}/{name}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "address", ["https://x.org/a.png", "data:image/png;base64,AA", "file:///a"]
)
def test_address_is_refused(address: str) -> None:
    with pytest.raises(ImageError, match="is an address, expected a file"):
        load_image(address)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anyway")
def test_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    path.chmod(0)
    with pytest.raises(ImageError, match="may"):
        load_image(path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "is of type NoneType, expected a path, bytes, a PIL image or a numpy array"),
        (3, "is of type int"),
        ([picture()], "is of type list.*pass the pictures one by one"),
    ],
)
def test_other_types_are_refused(source: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        load_image(source)


def _gradient16() -> np.ndarray[Any, Any]:
    return np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)


def _palette_with_transparency() -> bytes:
    image = picture().quantize(8)
    index = image.getpixel((0, 0))
    return encode(image, transparency=index)


# Mode, file, pixels expected: RGB(A) at the upper left, the upper right, below; largest difference.
PICTURES: list[tuple[str, Callable[[], bytes], list[tuple[int, ...]], int]] = [
    ("rgb png", lambda: encode(picture()), [RED, BLUE, GREEN], 0),
    ("rgb bmp", lambda: encode(picture(), "BMP"), [RED, BLUE, GREEN], 0),
    ("rgb webp", lambda: encode(picture(), "WEBP", lossless=True), [RED, BLUE, GREEN], 0),
    ("rgb jpeg", lambda: encode(picture(), "JPEG", quality=95), [RED, BLUE, GREEN], 6),
    ("grey", lambda: encode(picture().convert("L")), [(82,) * 3, (62,) * 3, (111,) * 3], 1),
    ("grey jpeg", lambda: encode(Image.new("L", (9, 9), 99), "JPEG"), [(99,) * 3] * 3, 2),
    ("one bit", lambda: encode(Image.new("1", (9, 9), 1)), [(255,) * 3] * 3, 0),
    ("grey, alpha", lambda: encode(Image.new("LA", (9, 9), (9, 8))), [(9, 9, 9, 8)] * 3, 0),
    ("rgba", lambda: encode(Image.new("RGBA", (9, 9), (1, 2, 3, 4))), [(1, 2, 3, 4)] * 3, 0),
    ("rgba webp", lambda: encode(Image.new("RGBA", (9, 9), "red"), "WEBP", lossless=True), [], 0),
    ("palette", lambda: encode(picture().quantize(8)), [RED, BLUE, GREEN], 0),
    (
        "palette, transparent",
        _palette_with_transparency,
        [(*RED, 0), (*BLUE, 255), (*GREEN, 255)],
        0,
    ),
    (
        "rgb, transparent colour",
        lambda: encode(picture(), transparency=RED),
        [(*RED, 0), (*BLUE, 255), (*GREEN, 255)],
        0,
    ),
    (
        "grey, transparent value",
        lambda: encode(Image.new("L", (9, 9), 7), transparency=7),
        [(7, 7, 7, 0)] * 3,
        0,
    ),
    (
        "cmyk jpeg",
        lambda: encode(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", quality=95),
        [(255, 0, 0)] * 3,
        6,
    ),
    (
        "16 bit",
        lambda: encode(Image.fromarray(np.full((9, 9), 0xABCD, np.uint16))),
        [(0xAB,) * 3] * 3,
        0,
    ),
    (
        "16 bit rgb",
        lambda: (
            b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0))
            + png_chunk(b"IDAT", zlib.compress((b"\0" + b"\x80\xff\x40\xff\x20\xff" * 9) * 9))
            + png_chunk(b"IEND", b"")
        ),
        [(0x80, 0x40, 0x20)] * 3,
        1,
    ),
    (
        "16 bit, transparent value",
        lambda: encode(Image.fromarray(np.full((9, 9), 0xABCD, np.uint16)), transparency=0xABCD),
        [(0xAB, 0xAB, 0xAB, 0)] * 3,
        0,
    ),
]


@pytest.mark.parametrize(
    ("data", "colours", "tolerance"), [pytest.param(*row[1:], id=row[0]) for row in PICTURES]
)
def test_every_kind_of_picture_shows_its_colours(
    tmp_path: Path, data: Callable[[], bytes], colours: list[tuple[int, ...]], tolerance: int
) -> None:
    path = tmp_path / "named.jpg"  # whatever it is: the name does not count
    path.write_bytes(data())
    image = load_image(path)
    assert image.mode in ("RGB", "RGBA")
    for where, expected in zip([(1, 1), (-2, 1), (1, -2)], colours, strict=False):
        x, y = where[0] % image.width, where[1] % image.height
        got = np.array(image.getpixel((x, y)), int)
        assert len(got) == len(expected)
        assert np.abs(got - expected).max() <= tolerance


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotated_picture_comes_upright(tag: int, name: str) -> None:
    turned_back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[tag]
    stored = picture() if turned_back is None else picture().transpose(turned_back)
    upright = load_image(with_orientation(stored, tag, name))
    assert upright.size == (24, 16)
    difference = np.abs(np.asarray(upright, int) - np.asarray(picture(), int))
    assert difference.mean() < 8
    assert "exif" not in upright.info


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about the EXIF
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert load_image(data).size == (24, 16)


def test_a_palette_that_is_missing_is_damage() -> None:
    whole = encode(picture().convert("P"))
    begin = whole.index(b"PLTE") - 4
    length = int.from_bytes(whole[begin : begin + 4])
    data = whole[:begin] + whole[begin + 12 + length :]
    with pytest.raises(ImageError, match="is damaged or cut short"):
        load_image(data)


def test_broken_exif_leaves_nothing_behind(tmp_path: Path) -> None:
    """Pillow warned in texts with numbers of the file, each of which Python keeps for ever."""
    for number in range(8):
        tag = struct.pack(">HHII", 0x010E, 2, 1000 + number, 8)  # so many bytes are not there
        exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + tag + bytes(4)
        for name in ("JPEG", "WEBP"):
            (tmp_path / f"{number}.{name}").write_bytes(encode(picture(), name, exif=exif))
    script = """
import sys
from pathlib import Path
from PIL import TiffImagePlugin
from bootpig_rt.images.image_input import load_image
for path in Path(sys.argv[1]).iterdir():
    load_image(path)
kept = vars(TiffImagePlugin).get("__warningregistry__", {})
print(len(kept.keys() - {"version"}))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_metadata_is_dropped_and_the_callers_image_left_alone() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "x")
    source = Image.open(io.BytesIO(encode(picture(), pnginfo=info, icc_profile=b"broken")))
    source.load()
    loaded = load_image(source)
    assert loaded.info == {}
    assert source.info["secret"] == "x"
    loaded.putpixel((0, 0), (0, 0, 0))
    assert source.getpixel((0, 0)) == RED


def test_main_picture_of_a_multi_picture_jpeg_is_taken() -> None:
    data = encode(picture(), "MPO", save_all=True, append_images=[noise().resize((24, 16))])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "MPO"
    difference = np.asarray(load_image(data), int) - np.asarray(picture(), int)
    assert np.abs(difference).mean() < 15  # the second picture is noise, about 70


def test_a_jpeg_of_very_many_scans_is_refused_and_one_with_a_film_behind_it_is_not() -> None:
    jpeg = encode(picture((64, 64)), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    scan = jpeg[last : last + 10]
    with pytest.raises(ImageError, match="over 100 scans"):
        load_image(jpeg[:-2] + scan * 100 + b"\xff\xd9")
    assert load_image(jpeg[:-2] + scan * 50 + b"\xff\xd9").size == (64, 64)
    assert load_image(jpeg + scan * 1000).size == (64, 64)  # as phones append to a picture


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("F", (9, 9)), "has PIL mode F, whose range is not known"),
        (Image.new("I", (9, 9)), "has PIL mode I, whose range is not known"),
        (Image.new("RGB", (1, 1)), "is 1x1 px"),
        (Image.new("1", (16385, 8)), "is 16385x8 px"),
    ],
)
def test_bad_pil_image_is_refused(image: Image.Image, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        load_image(image)


def test_opened_pil_images_are_checked_as_files_are() -> None:
    with (
        Image.open(io.BytesIO(animation("GIF"))) as opened,
        pytest.raises(ImageError, match="animated"),
    ):
        load_image(opened)
    opened = Image.open(io.BytesIO(encode(noise())[:-4000]))
    with pytest.raises(ImageError, match="damaged"):
        load_image(opened)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about metadata
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_bytes_never_raise_anything_else(name: str) -> None:
    rng = random.Random(name)
    options = {"exif": Image.Exif().tobytes()} if name != "BMP" else {}
    whole = encode(picture(), name, **options)
    refused = 0
    for _ in range(300):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert load_image(bytes(data)).mode in ("RGB", "RGBA")
        except ImageError:
            refused += 1
    assert refused > 50
