"""WebP files whose chunks are edited one by one, with right sizes unless meant."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

from tests.fuzz.byte_edits import edited, few, number_bytes, rearranged
from tests.fuzz.metadata import exif, profile, xmp

Chunk: TypeAlias = tuple[bytes, bytes]
"""Its kind and its contents."""


def chunks_of(data: bytes) -> list[Chunk]:
    """The chunks of a file that is whole."""
    found, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def webp_of(chunks: Sequence[Chunk]) -> bytes:
    """A file of these chunks, with their sizes."""
    body = b"WEBP" + b"".join(chunk_bytes(*one) for one in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk_bytes(kind: bytes, contents: bytes) -> bytes:
    """One chunk, filled up to an even length."""
    return kind + struct.pack("<I", len(contents)) + contents + b"\0" * (len(contents) % 2)


def edited_webp(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Some edits of the chunks of a file."""
    chunks = chunks_of(data)
    for _ in range(few(random, 5)):
        chunks = random.choice(_EDITS)(random, chunks, others)
    whole = webp_of(chunks)
    if random.random() < 0.1:
        at = 4 if random.random() < 0.5 else 16
        whole = whole[:at] + number_bytes(random, 4, is_big=False) + whole[at + 4 :]
    return edited(random, whole, others) if random.random() < 0.15 else whole


def _reorder(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    return rearranged(random, chunks)


def _edit_contents(random: Random, chunks: list[Chunk], others: Sequence[bytes]) -> list[Chunk]:
    if chunks:
        at = random.randrange(len(chunks))
        chunks[at] = (chunks[at][0], edited(random, chunks[at][1], others))
    return chunks


def _edit_head(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    """Other flags, another canvas, another size of the frame or of what is coded without loss."""
    for at, (kind, contents) in enumerate(chunks):
        new = bytearray(contents)
        side = number_bytes(random, 3, is_big=False)
        if kind == b"VP8X" and len(new) >= 10:
            place = random.choice((0, 4, 7))
            new[place : place + (3 if place else 1)] = side if place else random.randbytes(1)
        elif kind == b"VP8 " and len(new) >= 10:
            place = random.choice((0, 6, 8))
            new[place : place + 2] = side[:2]
        elif kind == b"VP8L" and len(new) >= 5:
            new[1:5] = random.choice((b"\xff\xff\xff\x0f", b"\xff\x07\xff\x01", side + b"\0"))
        elif kind == b"ANMF" and len(new) >= 16:
            place = random.choice((0, 3, 6, 9, 12))
            new[place : place + 3] = side
        chunks[at] = (kind, bytes(new))
    return chunks


def _add(random: Random, chunks: list[Chunk], _: Sequence[bytes]) -> list[Chunk]:
    """Metadata, parts of an animation, or a head that announces them."""
    flags = bytes((random.choice((0x02, 0x04, 0x08, 0x10, 0x20, 0x2C, 0xFF)), 0, 0, 0))
    canvas = random.choice(
        (b"\x2f\0\0\x2f\0\0", b"\xff\xff\xff\xff\xff\xff", b"\xff\x0f\0\xff\x0f\0")
    )
    frame = b"\0\0\0\0\0\0\x2f\0\0\x2f\0\0\x64\0\0\0" + chunk_bytes(*chunks[0]) if chunks else b""
    made: Chunk = random.choice(
        (
            lambda: (b"VP8X", flags + canvas),
            lambda: (b"EXIF", exif(random)),
            lambda: (b"EXIF", b"Exif\0\0" + exif(random)),
            lambda: (b"XMP ", xmp(random)),
            lambda: (b"ICCP", profile(random)),
            lambda: (b"ANIM", random.randbytes(6)),
            lambda: (b"ANMF", frame),
            lambda: (b"ALPH", random.randbytes(random.choice((1, 40)))),
            lambda: (b"C2PA", random.randbytes(200)),
            lambda: (b"\0\0\0\0", b"A"),
        )
    )()
    at = random.choice((0, len(chunks), random.randrange(len(chunks) + 1)))
    count = 1 if random.random() < 0.9 else 40
    return [*chunks[:at], *[made] * count, *chunks[at:]]


_EDITS: tuple[Callable[[Random, list[Chunk], Sequence[bytes]], list[Chunk]], ...] = (
    *(_reorder, _edit_contents, _edit_contents, _edit_head, _add, _add),
)
