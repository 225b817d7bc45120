"""Reference images that nobody should send, and odd ones that are read all the same."""

from __future__ import annotations

import base64
import io
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

Check = Callable[..., dict[str, Any]]
Encoded = Callable[..., bytes]
Disc = Callable[..., Image.Image]
Chunk = Callable[[bytes, bytes], bytes]
Look = Callable[..., httpx.Response]

MOST_GROWTH_MIB = 64.0


@pytest.fixture
def look(client: httpx.Client) -> Look:
    """What the model would see of some images."""

    def ask(*images: bytes, name: str = "image") -> httpx.Response:
        files = [(name, ("x.png", image)) for image in images]
        return client.post("/v1/subjects/preview", files=files)

    return ask


def seen(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text[:300]
    url = answer.json()["data"][0]["preview"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), np.int16)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 20])
def test_as_many_references_as_the_model_reads(
    client: httpx.Client, check_refusal: Check, reference_png: bytes, count: int
) -> None:
    fields = {"prompt": "a dog", "reference_prompt": "a disc", "num_inference_steps": "1"}
    files: Any = [("image[]", ("x.png", reference_png))] * count
    files += [("nothing", b"")] if not count else []
    answer = client.post("/v1/images/edits", data=fields, files=files)
    if count in (1, 3):
        assert answer.status_code == 200, answer.text
    else:
        code = "too_many_images" if count else "unknown_field"
        check_refusal(answer, 400, code)
    urls = [
        {"image_url": "data:image/png;base64," + base64.b64encode(reference_png).decode()}
    ] * count
    answer = client.post("/v1/images/edits", json={"prompt": "a dog", "images": urls})
    assert answer.status_code == (200 if count in (1, 3) else 400)


@pytest.mark.parametrize(
    ("size", "is_read"),
    [
        ((1, 1), False),
        ((1, 8000), False),
        ((8000, 1), False),
        ((7, 8), False),
        ((8, 8), True),
        ((8, 16384), True),
        ((8, 16385), False),
    ],
)
def test_images_of_every_size_are_read_or_refused(
    look: Look, encoded: Encoded, check_refusal: Check, size: tuple[int, int], is_read: bool
) -> None:
    answer = look(encoded(Image.new("RGB", size, (200, 0, 0))))
    if is_read:
        assert answer.status_code == 200
    else:
        message = check_refusal(answer, 400, "invalid_image", "image")["message"]
        assert f"{size[0]}x{size[1]} px, expected 8 to 16384" in message


def test_a_file_of_many_pixels_is_refused_before_it_takes_memory(
    server: Any,
    look: Look,
    check_refusal: Check,
    png_of_size: Callable[..., bytes],
    encoded: Encoded,
    disc: Disc,
    usage_of: Callable[[Any], Any],
) -> None:
    gif = (
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    )
    webp = bytearray(encoded(disc("RGBA"), "WEBP", lossless=True))
    at = webp.index(b"\x2f", 12) + 1
    webp[at : at + 4] = struct.pack("<I", 16382 | 16382 << 14)
    bombs = {
        "of 7.5 GB": png_of_size(50_000, 50_000),
        "of most pixels": png_of_size(2**31 - 1, 2**31 - 1),
        "of no pixels": png_of_size(0, 0),
        "all pixels in 80 kB": png_of_size(5000, 5000, has_pixels=True),
        "GIF": gif,
        "WebP": bytes(webp),
        "FITS": b"SIMPLE  =                    T" + b" " * 5000,
        "GD": b"\xff\xfe\xff\xff\xff\xff\1" + bytes(100),
    }
    look(encoded(disc()))
    usage = usage_of(server)
    before = usage.now_mib()
    for bomb in bombs.values():
        check_refusal(look(bomb), 400, "invalid_image", "image")
    assert usage.peak_mib() - before < MOST_GROWTH_MIB


def test_what_hides_in_a_file_beside_its_pixels_takes_no_memory_either(
    server: Any,
    look: Look,
    encoded: Encoded,
    disc: Disc,
    png_chunk: Chunk,
    usage_of: Callable[[Any], Any],
) -> None:
    plain = encoded(disc())

    def with_chunks(*chunks: bytes) -> bytes:
        return plain[:33] + b"".join(chunks) + plain[33:]

    packed = zlib.compress(bytes(64 << 20), 9)
    files = {
        "EXIF of 16 MB": (with_chunks(png_chunk(b"eXIf", b"MM\0*" + bytes(16 << 20))), 200),
        "text of 64 MB": (with_chunks(png_chunk(b"iTXt", b"k\0\1\0\0\0" + packed)), 400),
        "profile of 64 MB": (with_chunks(png_chunk(b"iCCP", b"k\0\0" + packed)), 400),
        "no profile": (encoded(disc(), icc_profile=b"not a profile" * 100), 200),
    }
    look(plain)
    usage = usage_of(server)
    before = usage.now_mib()
    for file, status in files.values():
        assert look(file).status_code == status
    assert usage.peak_mib() - before < MOST_GROWTH_MIB + 3 * 16  # beside the largest upload


def test_a_jpeg_of_ten_thousand_scans_is_refused_unread(
    look: Look, encoded: Encoded, disc: Disc, check_refusal: Check
) -> None:
    jpeg = encoded(disc("L", (512, 512)), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    scan = jpeg[last : last + 10]
    answer = look(jpeg[:-2] + scan * 10_000 + b"\xff\xd9")
    assert "10" in check_refusal(answer, 400, "invalid_image", "image")["message"]
    assert look(jpeg).status_code == 200


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"\x80\x04\x95cos\nsystem\n.", "not a picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
        (b"8BPS" + bytes(64), "PSD"),
    ],
)
def test_what_is_no_picture_is_refused_by_the_name_of_what_it_is(
    look: Look, check_refusal: Check, data: bytes, name: str
) -> None:
    assert name in check_refusal(look(data), 400, "invalid_image", "image")["message"]


@pytest.mark.parametrize("format", ["ICO", "TIFF", "GIF", "BMP", "PPM"])
def test_other_formats_are_never_opened(
    look: Look, encoded: Encoded, disc: Disc, check_refusal: Check, format: str
) -> None:
    message = check_refusal(look(encoded(disc(), format)), 400, "invalid_image")["message"]
    assert "expected PNG, JPEG or WebP" in message


def test_damaged_pictures_are_refused(
    look: Look, encoded: Encoded, disc: Disc, check_refusal: Check
) -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        file = encoded(disc(), format)
        check_refusal(look(file[: len(file) // 2]), 400, "invalid_image")
    flipped = bytearray(encoded(disc()))
    flipped[60] ^= 0xFF
    check_refusal(look(bytes(flipped)), 400, "invalid_image")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_refused_and_not_read_by_its_first_frame(
    look: Look, encoded: Encoded, disc: Disc, check_refusal: Check, format: str
) -> None:
    frames = [disc(), Image.new("RGB", (48, 48), "red")]
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert "animated (2 frames)" in check_refusal(look(file), 400, "invalid_image")["message"]


def test_a_file_with_another_behind_it_or_another_name_is_the_picture_that_it_is(
    client: httpx.Client, look: Look, encoded: Encoded, disc: Disc
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", "raise SystemExit")
    plain = encoded(disc())
    assert (seen(look(plain + archive.getvalue())) == seen(look(plain))).all()
    jpeg = encoded(disc(), "JPEG", quality=95)
    files = {"image": ("x.svg", jpeg, "application/pdf")}
    named = client.post("/v1/subjects/preview", files=files)
    assert (seen(named) == seen(look(jpeg))).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "tRNS", "RGBA", "CMYK", "I;16", "EXIF"])
def test_pictures_of_every_mode_look_as_in_rgb(
    look: Look, encoded: Encoded, disc: Disc, mode: str
) -> None:
    grey = disc("L").convert("RGB")
    expected = seen(look(encoded(disc())))
    tolerance = {"P": 8.0, "tRNS": 8.0, "CMYK": 8.0, "EXIF": 8.0}.get(mode, 2.0)
    if mode in ("L", "LA"):
        file, expected = encoded(disc(mode)), seen(look(encoded(grey)))
    elif mode == "I;16":
        values = np.asarray(disc("L")).astype(np.uint16) * 257
        file, expected = encoded(Image.fromarray(values)), seen(look(encoded(grey)))
    elif mode == "tRNS":
        image = disc("P")
        file = encoded(image, transparency=image.getpixel((0, 0)))
    elif mode == "CMYK":
        file = encoded(disc("CMYK"), "JPEG", quality=95)
    elif mode == "EXIF":
        tall = disc("RGB", (48, 96))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by the camera
        turned = tall.transpose(Image.Transpose.ROTATE_90)
        file = encoded(turned, "JPEG", quality=95, exif=exif)
        expected = seen(look(encoded(tall)))
    else:
        file = encoded(disc(mode))
    assert np.abs(seen(look(file)) - expected).mean() < tolerance


def test_a_picture_without_a_subject_is_refused(
    look: Look, encoded: Encoded, check_refusal: Check
) -> None:
    white, clear = Image.new("RGB", (48, 48), "white"), Image.new("RGBA", (48, 48))
    assert "white all over" in check_refusal(look(encoded(white)), 400)["message"]
    assert "transparent all over" in check_refusal(look(encoded(clear)), 400)["message"]
    clear.putpixel((20, 20), (255, 0, 0, 255))
    assert "subject of 1x1 px" in check_refusal(look(encoded(clear)), 400)["message"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1:70/1",
        "data:text/plain;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,AAA",
        "data:image/png;base64,A\x00==",
        "DATA:image/png;base64,AAAA",
        "http://[::1]/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/x.png",
        "http://0177.0.0.1/x.png",
        "http://example.org@127.0.0.1/x.png",
        "http://[::ffff:127.0.0.1]/x.png",
        "//127.0.0.1/x.png",
        "",
    ],
)
def test_an_address_or_data_of_another_kind_is_refused(
    client: httpx.Client, check_refusal: Check, url: str
) -> None:
    body = {"prompt": "a dog", "images": [{"image_url": url}]}
    answer = client.post("/v1/images/edits", json=body)
    check_refusal(answer, 400, "invalid_image", "images.0.image_url")


def test_nothing_is_ever_fetched(client: httpx.Client, check_refusal: Check) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        body = {"prompt": "a dog", "images": [{"image_url": url}]}
        check_refusal(client.post("/v1/images/edits", json=body), 400, "invalid_image")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_base64_of_the_wrong_kind_is_read_as_what_it_is_or_refused(
    client: httpx.Client, check_refusal: Check, encoded: Encoded, disc: Disc
) -> None:
    def ask(kind: str, data: bytes) -> httpx.Response:
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        body = {
            "prompt": "a disc",
            "reference_prompt": "a disc",
            "num_inference_steps": 1,
            "images": [{"image_url": url}],
        }
        return client.post("/v1/images/edits", json=body)

    assert ask("png", encoded(disc(), "JPEG")).status_code == 200
    check_refusal(ask("png", encoded(disc(), "BMP")), 400, "invalid_image")
    check_refusal(ask("webp", b"no picture"), 400, "invalid_image")
    too_large = ask("png", bytes(33 << 20))
    check_refusal(too_large, 413, "body_too_large")
