"""Pictures as files: what is in them, and that it comes back out of each format."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bootpig_rt.errors import ParameterError
from bootpig_rt.images.encode_image import MEDIA_TYPES, ImageFormat, encode_image
from bootpig_rt.images.image_input import load_image
from bootpig_rt.images.marks import GENERATED, without_prompts
from bootpig_rt.images.picture import is_marked_generated, read_parameters

FORMATS = tuple(MEDIA_TYPES)
NASTY = [
    'a "dog" \\ & <b>]]></b> é 日本 🐕',
    "</bootpig:parameters><Iptc4xmpExt:DigitalSourceType>x</Iptc4xmpExt:DigitalSourceType>",
    "\0\x1b[31m\x7f\r\n\t\ud800\ufffe\uffff",
    "<!DOCTYPE x [<!ENTITY a 'b'>]>&a;",
    '<?xpacket end="w"?>',
]

texts = st.text(st.characters(exclude_categories=())) | st.sampled_from(NASTY)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A gradient, which every format keeps nearly as it is."""
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (24, 1)), np.tile(ramp[::-1], (24, 1))], axis=2)
    return Image.fromarray(np.dstack([pixels, np.full((24, 32), 90, np.uint8)]))


@settings(deadline=None, max_examples=90)
@given(parameters=st.dictionaries(texts, values, max_size=4))
def test_parameters_come_back_out_of_each_format(parameters: dict[str, Any]) -> None:
    for format in FORMATS:
        encoded = encode_image(Image.new("RGB", (8, 8)), format=format, parameters=parameters)
        assert read_parameters(encoded) == parameters, format
        assert is_marked_generated(encoded), format


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [60_000, 66_000, 500_000])
def test_long_parameters_come_back_out_of_each_format(
    format: ImageFormat, size: int, picture: Image.Image
) -> None:
    parameters = {"prompt": "&\ud83d" * (size // 7), "seed": 3}
    encoded = encode_image(picture, format=format, parameters=parameters)
    assert read_parameters(encoded) == parameters
    assert is_marked_generated(encoded)
    assert load_image(encoded).size == picture.size


@pytest.mark.parametrize("format", FORMATS)
def test_the_picture_is_that_of_the_format(format: ImageFormat, picture: Image.Image) -> None:
    encoded = encode_image(picture, format=format)
    with Image.open(io.BytesIO(encoded)) as opened:
        assert Image.MIME[opened.format or ""] == MEDIA_TYPES[format]
        difference = np.asarray(opened.convert("RGB"), int) - np.asarray(picture, int)
    assert np.abs(difference).max() <= (0 if format == "png" else 12)


def test_the_mark_stands_where_each_format_has_its_place(picture: Image.Image) -> None:
    files = {format: encode_image(picture, format=format) for format in FORMATS}
    packets = {}
    chunks = dict(png_chunks(files["png"]))
    keyword, flags, packets["png"] = chunks[b"iTXt"].partition(b"\0\0\0\0\0")
    assert (keyword, flags) == (b"XML:com.adobe.xmp", b"\0\0\0\0\0")
    start = files["jpeg"].index(b"\xff\xe1")
    (length,) = struct.unpack_from(">H", files["jpeg"], start + 2)
    segment = files["jpeg"][start + 4 : start + 2 + length]
    header, _, packets["jpeg"] = segment.partition(b"\0")
    assert header == b"http://ns.adobe.com/xap/1.0/"
    assert start < files["jpeg"].index(b"\xff\xda")
    start = files["webp"].index(b"XMP ")
    (length,) = struct.unpack_from("<I", files["webp"], start + 4)
    packets["webp"] = files["webp"][start + 8 : start + 8 + length]
    for packet in packets.values():
        source = ElementTree.fromstring(packet.decode()).find(
            ".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
        )
        assert source is not None
        assert source.text == GENERATED


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Types and contents; their checksums hold."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(body),)
        chunks.append((body[:4], body[4:]))
        at += 12 + length
    return chunks


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_picture_brings_along_is_left_out(format: ImageFormat) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(
        stream, "JPEG", exif=exif, icc_profile=b"SECRET", comment=b"SECRET", xmp=b"<a>SECRET</a>"
    )
    with Image.open(stream) as brought:
        brought.load()
        brought.info["parameters"] = brought.info["comment"] = "SECRET"
        assert b"SECRET" not in encode_image(brought, format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_no_model_made_does_not_say_so(format: ImageFormat) -> None:
    encoded = encode_image(
        Image.new("RGB", (8, 8)), format=format, parameters={"subject": "x"}, is_generated=False
    )
    assert not is_marked_generated(encoded)
    assert read_parameters(encoded) == {"subject": "x"}


def test_lower_compression_values_make_smaller_files() -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    formats: tuple[ImageFormat, ...] = ("jpeg", "webp")
    for format in formats:
        sizes = [len(encode_image(noise, format=format, compression=q)) for q in (0, 50, 100)]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "gif"}, "format is 'gif', expected one of: png, jpeg, webp"),
        ({"format": "jpeg", "compression": 101}, "compression is 101, expected 0..100"),
        ({"format": "webp", "compression": 9.5}, "compression is 9.5, expected a whole number"),
        ({"compression": 50}, "a PNG loses nothing: leave it out"),
        ({"parameters": {"x": float("nan")}}, "do not fit JSON"),
        ({"parameters": {"x": b"1"}}, "do not fit JSON"),
        (
            {"texts": {"workflow": "x"}, "format": "jpeg"},
            "texts workflow for a jpeg, expected a png",
        ),
        ({"texts": {"parameters": "x"}}, "names other than parameters and XML:com.adobe.xmp"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        encode_image(Image.new("RGB", (8, 8)), **options)


def test_texts_of_other_programs_lie_beside_the_marks_of_a_png() -> None:
    encoded = encode_image(Image.new("RGB", (8, 8)), parameters={"a": 1}, texts={"workflow": "ü日"})
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.info["workflow"] == "ü日"
    assert is_marked_generated(encoded)
    assert read_parameters(encoded) == {"a": 1}


def test_a_mode_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(ParameterError, match="mode RGBA cannot become jpeg, expected one of: L"):
        encode_image(Image.new("RGBA", (8, 8)), format="jpeg")


def test_prompts_can_be_left_out_at_any_depth() -> None:
    one = {"prompt": "a", "negative_prompt": "b", "reference_prompt": "c", "seed": 1}
    assert without_prompts({"pictures": [one, one], **one}) == {
        "pictures": [{"seed": 1}, {"seed": 1}],
        "seed": 1,
    }
