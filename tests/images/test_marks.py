"""Reading marks of files that anybody may have made."""

from __future__ import annotations

import io

import pytest
from PIL import Image, PngImagePlugin

from bootpig_rt.images.jpeg_xmp import jpeg_segments, packets_of_jpeg
from bootpig_rt.images.marks import GENERATED, MAX_PACKET_BYTES, Marks, read_packet, xmp_packet
from bootpig_rt.images.picture import is_marked_generated

SPACES = (
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
)


def description(attributes: str = "", properties: str = "") -> bytes:
    """A packet as another program may write it."""
    return (
        f"<rdf:RDF {SPACES}><rdf:Description {attributes}>{properties}</rdf:Description></rdf:RDF>"
    ).encode()


@pytest.mark.parametrize(
    "packet",
    [
        description(f'i:DigitalSourceType="{GENERATED}"'),
        description("", f'<i:DigitalSourceType rdf:resource="{GENERATED}"/>'),
        description("", f"<i:DigitalSourceType>\n {GENERATED} </i:DigitalSourceType>"),
        description(f'i:DigitalSourceType="{GENERATED.replace("http:", "https:")}"'),
        description(
            f'i:DigitalSourceType="{GENERATED.replace("trained", "compositeWithTrained")}"'
        ),
        b"\xef\xbb\xbf" + xmp_packet(is_generated=True) + b" " * 2048 + b"\0",
    ],
)
def test_marks_of_other_programs_are_read(packet: bytes) -> None:
    assert read_packet(packet).is_generated


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"<",
        b"\xff\xfe<\0a\0",
        description(f'x="{GENERATED}"'),
        description(f'i:DigitalSourceType="{GENERATED}x"'),
        description(f'i:DigitalSourceType="{GENERATED.replace("trainedA", "a")}"'),
        b"<!DOCTYPE a>" + description(f'i:DigitalSourceType="{GENERATED}"'),
        description(f'i:DigitalSourceType="{GENERATED}"') + b" " * MAX_PACKET_BYTES,
        b"<a>" * 100_000,
    ],
    ids=lambda packet: packet[:24].decode("latin-1"),
)
def test_other_packets_say_nothing(packet: bytes) -> None:
    assert read_packet(packet) == Marks()


def test_entities_are_not_expanded() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY a "%s">]>' % GENERATED.encode()
    assert read_packet(bomb + description(f'i:DigitalSourceType="&{"a"};"')) == Marks()


def test_a_picture_without_marks_does_not_say_that_it_is_generated() -> None:
    stream = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", GENERATED)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=info)
    assert not is_marked_generated(stream.getvalue())


def segments_of(data: bytes) -> list[tuple[str, bytes]]:
    """Segments as Pillow finds them."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", extra=data)
    with Image.open(stream) as opened:
        return list(getattr(opened, "applist"))  # noqa: B009  untyped


def test_an_extension_that_lacks_a_part_or_is_shuffled_is_left_out() -> None:
    segments = segments_of(jpeg_segments(is_generated=True, parameters='"' + "x" * 150_000 + '"'))
    assert len(packets_of_jpeg(segments)) == 2
    broken = [segments[:-1], [*segments[:-2], segments[-1]], [*segments[:-2], *segments[:-3:-1]]]
    for rest in broken:
        [main] = packets_of_jpeg(rest)
        assert read_packet(main) == Marks(is_generated=True)
    short = [(marker, contents[:70]) for marker, contents in segments]
    assert len(packets_of_jpeg(short)) == 1
