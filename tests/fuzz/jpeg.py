"""JPEG files whose segments and scans are edited one by one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.fuzz.byte_edits import NUMBERS, edited, few, number_bytes, rearranged
from tests.fuzz.metadata import exif, profile, xmp

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)
_BARE = (0x01, _START, _END, *range(0xD0, 0xD8))
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"


@dataclass(frozen=True)
class Segment:
    """One segment.

    Attributes:
        marker: Its code.
        contents: What its length counts, without that length.
        coded: Of a scan: what follows until the next marker.
        length: Said in place of the right one.
    """

    marker: int
    contents: bytes = b""
    coded: bytes = b""
    length: int | None = None

    def to_bytes(self) -> bytes:
        """As it stands in a file."""
        head = bytes((0xFF, self.marker))
        if self.marker in _BARE:
            return head + self.coded
        length = len(self.contents) + 2 if self.length is None else self.length
        return head + struct.pack(">H", length & 0xFFFF) + self.contents + self.coded


def segments_of(data: bytes) -> list[Segment]:
    """The segments of a file that is whole."""
    found, at = [], 0
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        at += 2
        contents = b""
        if marker not in _BARE:
            (length,) = struct.unpack_from(">H", data, at)
            contents = data[at + 2 : at + length]
            at += length
        begin = at
        if marker == _SCAN:
            while at + 1 < len(data) and not (
                data[at] == 0xFF and data[at + 1] != 0 and data[at + 1] not in range(0xD0, 0xD8)
            ):
                at += 1
        found.append(Segment(marker, contents, data[begin:at]))
    return found


def jpeg_of(segments: Sequence[Segment]) -> bytes:
    """A file of these segments."""
    return b"".join(one.to_bytes() for one in segments)


def edited_jpeg(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Some edits of the segments of a file."""
    segments = segments_of(data)
    for _ in range(few(random, 5)):
        segments = random.choice(_EDITS)(random, segments, others)
    whole = jpeg_of(segments)
    return edited(random, whole, others) if random.random() < 0.15 else whole


def _reorder(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    return segments[:1] + rearranged(random, segments[1:])


def _edit_contents(
    random: Random, segments: list[Segment], others: Sequence[bytes]
) -> list[Segment]:
    if segments:
        at = random.randrange(len(segments))
        one = segments[at]
        if one.coded and random.random() < 0.6:
            segments[at] = replace(one, coded=edited(random, one.coded, others))
        else:
            segments[at] = replace(one, contents=edited(random, one.contents, others)[:65533])
    return segments


def _edit_length(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    if segments:
        at = random.randrange(len(segments))
        segments[at] = replace(segments[at], length=random.choice((0, 1, 2, 3, 65535, 100)))
    return segments


def _edit_marker(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    if segments:
        at = random.randrange(len(segments))
        segments[at] = replace(segments[at], marker=random.randrange(0xC0, 0x100))
    return segments


def _edit_frame(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    """Another size, precision, kind, or other components and sampling."""
    for at, one in enumerate(segments):
        if one.marker in _FRAMES and len(one.contents) >= 6:
            contents = bytearray(one.contents)
            match random.randrange(4):
                case 0:
                    side = random.choice((*NUMBERS, 1, 7, 9, 47, 49, 2000, 4000, 16384)) & 0xFFFF
                    place = random.choice((1, 3))
                    contents[place : place + 2] = struct.pack(">H", side)
                case 1:
                    contents[1:5] = struct.pack(">HH", 4000, 4000)
                case 2:
                    contents[random.choice((0, 5))] = random.choice((0, 1, 2, 3, 4, 8, 12, 255))
                case _:
                    contents[random.randrange(6, len(contents) + 1) - 1] = random.choice(
                        (0, 0x11, 0x12, 0x22, 0x41, 0x44, 0xFF)
                    )
            marker = one.marker if random.random() < 0.8 else random.choice(_FRAMES)
            segments[at] = replace(one, marker=marker, contents=bytes(contents))
    return segments


def _repeat_scans(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    """The last scan again and again, as it is or with nothing in it."""
    scans = [one for one in segments if one.marker == _SCAN]
    if scans:
        scan = random.choice(scans)
        scan = replace(scan, coded=random.choice((scan.coded, scan.coded[:4], b"")))
        count = random.choice((1, 5, 60, 95, 120))
        at = len(segments) - 1 if segments[-1].marker == _END else len(segments)
        segments[at:at] = [scan] * count
    return segments


def _add(random: Random, segments: list[Segment], _: Sequence[bytes]) -> list[Segment]:
    """A segment of metadata, behind the first marker or anywhere before the pixels."""
    packet = xmp(random)[:60_000]
    parts = struct.pack(">II", random.choice((len(packet), 2 * len(packet), 0)), 0)
    numbers = bytes((random.choice((0, 1, 2, 255)), random.choice((0, 1, 2, 255))))
    made: Segment = random.choice(
        (
            lambda: Segment(0xE1, b"Exif\0\0" + exif(random)[:60_000]),
            lambda: Segment(0xE1, b"Exif\0\0" + exif(random)[:60_000]),
            lambda: Segment(0xE1, _XMP + packet),
            lambda: Segment(0xE1, _EXTENSION + b"A" * 32 + parts + packet),
            lambda: Segment(0xE2, b"ICC_PROFILE\0" + numbers + profile(random)),
            lambda: Segment(0xE2, b"MPF\0" + exif(random)[:60_000]),
            lambda: Segment(
                0xED, b"Photoshop 3.0\0" + edited(random, b"8BIM\4\4\0\0\0\0\0\4abcd" * 3)
            ),
            lambda: Segment(0xEE, b"Adobe" + random.randbytes(random.choice((0, 6, 7)))),
            lambda: Segment(0xE0, b"JFIF\0" + random.randbytes(random.choice((0, 2, 9)))),
            lambda: Segment(0xEB, b"JP\0\1\0\0\0\1" + random.randbytes(40)),
            lambda: Segment(0xDD, number_bytes(random, 2)),
            lambda: Segment(0xDB, random.randbytes(random.choice((1, 65, 129)))),
            lambda: Segment(0xC4, random.randbytes(random.choice((1, 17, 30)))),
            lambda: Segment(0xFE, b"A" * random.choice((0, 10, 65_533))),
        )
    )()
    first = next((n for n, one in enumerate(segments) if one.marker == _SCAN), len(segments))
    at = 1 if random.random() < 0.7 else random.randrange(first + 1)
    count = 1 if random.random() < 0.9 else 30
    return [*segments[:at], *[made] * count, *segments[at:]]


_EDITS: tuple[Callable[[Random, list[Segment], Sequence[bytes]], list[Segment]], ...] = (
    *(_reorder, _edit_contents, _edit_contents, _edit_length, _edit_marker),
    *(_edit_frame, _repeat_scans, _add, _add),
)
