"""XMP in a JPEG file: in segments that end at 64 KiB, so that long packets come in parts.

As part 3 of the XMP specification lays it down in its section on JPEG: a main packet, which names
an extension, and the parts of that. Knows segments and packets, and nothing of what they say.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from bootpig_rt.images.marks import MAX_PACKET_BYTES, extension_packet, xmp_packet

_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_HEADER = b"http://ns.adobe.com/xmp/extension/\0"
_NAME_BYTES = 32  # MD5 in hexadecimal, by which the parts of an extension are known
_PLACE = struct.Struct(">II")  # bytes of the whole extension, where in it a part begins
_MAX_CONTENTS_BYTES = 65_533  # a segment's length has 16 bits and counts itself
_PART_BYTES = 65_000


def jpeg_segments(*, is_generated: bool, parameters: str | None) -> bytes:
    """Marks as the APP1 segments of a JPEG.

    Args:
        is_generated: Say that a trained model made the picture.
        parameters: JSON in ASCII; None for none.
    """
    packet = xmp_packet(is_generated=is_generated, parameters=parameters)
    if parameters is None or len(_HEADER) + len(packet) <= _MAX_CONTENTS_BYTES:
        return _segment(_HEADER + packet)
    extension = extension_packet(parameters)
    name = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper()
    segments = [_segment(_HEADER + xmp_packet(is_generated=is_generated, extension=name))]
    for offset in range(0, len(extension), _PART_BYTES):
        place = name.encode() + _PLACE.pack(len(extension), offset)
        part = extension[offset : offset + _PART_BYTES]
        segments.append(_segment(_EXTENSION_HEADER + place + part))
    return b"".join(segments)


def packets_of_jpeg(segments: Iterable[tuple[str, bytes]]) -> list[bytes]:
    """The packets of a JPEG: the main one, then its extension if all parts are there, in order.

    Args:
        segments: Marker and contents, as Pillow's `applist` has them; of anybody's file.
    """
    packets = []
    extension = bytearray()
    size = 0
    for marker, contents in segments:
        if marker == "APP1" and contents.startswith(_HEADER):
            packets.append(contents.removeprefix(_HEADER))
        elif marker == "APP1" and contents.startswith(_EXTENSION_HEADER):
            rest = contents.removeprefix(_EXTENSION_HEADER)[_NAME_BYTES:]
            if len(rest) >= _PLACE.size:
                size, offset = _PLACE.unpack_from(rest)
                if offset == len(extension) and size <= MAX_PACKET_BYTES:
                    extension += rest[_PLACE.size :]
    if extension and len(extension) == size:
        packets.append(bytes(extension))
    return packets


def _segment(contents: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(contents) + 2) + contents
