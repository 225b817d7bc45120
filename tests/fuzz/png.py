"""PNG files whose chunks are edited one by one, with right lengths and checksums unless meant."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

from tests.fuzz.byte_edits import NUMBERS, edited, few, number_bytes, rearranged
from tests.fuzz.metadata import exif, packed, packed_zeros, parameters_text, profile, xmp

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk: TypeAlias = tuple[bytes, bytes]
"""Its kind and its contents."""

_HEAD = struct.Struct(">IIBBBBB")


def chunks_of(data: bytes) -> list[Chunk]:
    """The chunks of a file that is whole."""
    found, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(chunks: Sequence[Chunk]) -> bytes:
    """A file of these chunks, with their lengths and checksums."""
    return SIGNATURE + b"".join(chunk_bytes(kind, contents) for kind, contents in chunks)


def chunk_bytes(kind: bytes, contents: bytes) -> bytes:
    """One chunk."""
    checksum = zlib.crc32(kind + contents)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)


def edited_png(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Some edits of the chunks of a file."""
    chunks = chunks_of(data)
    for _ in range(few(random, 5)):
        chunks = random.choice(_EDITS)(random, chunks, others)
    whole = png_of(chunks)
    if random.random() < 0.1:
        return _with_wrong_frame(random, chunks)
    return edited(random, whole, others) if random.random() < 0.1 else whole


def _with_wrong_frame(random: Random, chunks: Sequence[Chunk]) -> bytes:
    """A file in which a length or a checksum is not that of its chunk."""
    parts = [chunk_bytes(*one) for one in chunks]
    if parts:
        at = random.randrange(len(parts))
        part = parts[at]
        parts[at] = random.choice(
            (
                part[:-4] + random.randbytes(4),
                number_bytes(random, 4) + part[4:],
                part[:-1],
                part + b"\0",
            )
        )
    return SIGNATURE + b"".join(parts)


def _reorder(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    return chunks[:1] + rearranged(random, chunks[1:]) if chunks else chunks


def _edit_contents(random: Random, chunks: list[Chunk], others: Sequence[bytes]) -> list[Chunk]:
    if chunks:
        at = random.randrange(len(chunks))
        chunks[at] = (chunks[at][0], edited(random, chunks[at][1], others))
    return chunks


def _edit_kind(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    if chunks:
        at = random.randrange(len(chunks))
        kinds = (b"IDAT", b"fdAT", b"IEND", b"PLTE", b"tRNS", b"\0\0\0\0", b"idat", b"caBX")
        chunks[at] = (random.choice(kinds), chunks[at][1])
    return chunks


def _edit_head(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    if not chunks or len(chunks[0][1]) != _HEAD.size:
        return chunks
    fields = list(_HEAD.unpack(chunks[0][1]))
    at = random.randrange(len(fields))
    if at < 2:
        sides = (*NUMBERS, 1, 7, 9, 47, 49, 2000, 4096, 16384, 16385)
        fields[at] = random.choice(sides) % (1 << 32)
    else:
        fields[at] = random.choice((0, 1, 2, 3, 4, 5, 6, 8, 16, 32, 255))
    return [(b"IHDR", _HEAD.pack(*fields)), *chunks[1:]]


def _edit_pixels(random: Random, chunks: list[Chunk], others: Sequence[bytes]) -> list[Chunk]:
    """Other bytes under right compression, in one piece or in many."""
    try:
        raw = zlib.decompress(b"".join(contents for kind, contents in chunks if kind == b"IDAT"))
    except zlib.error:
        return chunks
    raw = edited(random, raw, others)
    new = random.choice((zlib.compress(raw), zlib.compress(raw, 0), packed_zeros(16)))
    size = random.choice((len(new), 1, 100, 4096))
    parts = [(b"IDAT", new[at : at + size]) for at in range(0, min(len(new), 400 * size), size)]
    at = next((n for n, (kind, _) in enumerate(chunks) if kind == b"IDAT"), len(chunks))
    rest = [one for one in chunks[at:] if one[0] != b"IDAT"]
    return [*chunks[:at], *parts, *rest]


def _add(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    """A chunk of metadata, right after the head or anywhere."""
    text = parameters_text(random).encode("utf-8", "surrogatepass")
    flag = random.choice((b"\0\0", b"\1\0", b"\1\1", b"\2\0"))
    made: Chunk = random.choice(
        (
            lambda: (b"zTXt", b"parameters\0\0" + packed(random, text)),
            lambda: (
                b"zTXt",
                b"Raw profile type exif\0\0"
                + packed(random, b"\nexif\n 8\n" + text.hex().encode()),
            ),
            lambda: (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(random)),
            lambda: (
                b"iTXt",
                b"XML:com.adobe.xmp\0" + flag + b"\0\0" + packed(random, xmp(random)),
            ),
            lambda: (b"tEXt", b"parameters\0" + text),
            lambda: (b"iCCP", b"name\0\0" + packed(random, profile(random))),
            lambda: (b"eXIf", exif(random)),
            lambda: (b"eXIf", b"Exif\0\0" + exif(random)),
            lambda: (b"tRNS", random.randbytes(random.choice((0, 1, 2, 6, 256, 257)))),
            lambda: (b"PLTE", random.randbytes(random.choice((0, 3, 4, 48, 768, 900)))),
            lambda: (b"gAMA", number_bytes(random, 4)),
            lambda: (b"cHRM", random.randbytes(32)),
            lambda: (b"sRGB", random.randbytes(random.choice((0, 1, 2)))),
            lambda: (b"pHYs", random.randbytes(9)),
            lambda: (b"acTL", number_bytes(random, 4) + number_bytes(random, 4)),
            lambda: (b"acTL", b""),
            lambda: (b"fcTL", random.randbytes(26)),
            lambda: (b"fdAT", random.randbytes(random.choice((0, 4, 40)))),
            lambda: (b"tIME", random.randbytes(7)),
            lambda: (b"caBX", random.randbytes(200)),
        )
    )()
    at = 1 if random.random() < 0.7 else random.randrange(len(chunks) + 1)
    count = 1 if random.random() < 0.95 else 70
    return [*chunks[:at], *[made] * count, *chunks[at:]]


_EDITS: tuple[Callable[[Random, list[Chunk], Sequence[bytes]], list[Chunk]], ...] = (
    *(_reorder, _edit_contents, _edit_kind, _edit_head, _edit_pixels, _add, _add),
)
