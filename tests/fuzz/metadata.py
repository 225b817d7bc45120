"""What hides in picture files beside their pixels: EXIF, XMP, colour profiles, text, and bombs."""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from random import Random

from bootpig_rt.images.marks import xmp_packet
from tests.fuzz.byte_edits import NUMBERS, edited, few

_TAGS = (0x0100, 0x0101, 0x0102, 0x0112, 0x011A, 0x0131, 0x02BC, 0x8769, 0x8825, 0xA005, 0x927C)
_WIDTHS = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
_MIB = 1 << 20


@cache
def packed_zeros(size_mib: int) -> bytes:
    """Zeros that take a thousandth of their size."""
    return zlib.compress(bytes(size_mib * _MIB), 9)


def packed(random: Random, text: bytes) -> bytes:
    """Something packed: a text, a bomb, or what is not packed at all."""
    return random.choice(
        (
            lambda: zlib.compress(text),
            lambda: zlib.compress(text)[: random.randrange(12)],
            lambda: packed_zeros(1),
            lambda: packed_zeros(random.choice((2, 64))),
            lambda: edited(random, zlib.compress(text)),
            lambda: text,
        )
    )()


def exif(random: Random) -> bytes:
    """A TIFF header with directories whose counts, types and offsets may lead anywhere."""
    is_big = random.random() < 0.5
    order = ">" if is_big else "<"
    first = 8 if random.random() < 0.8 else random.choice(NUMBERS)
    out = (b"MM" if is_big else b"II") + struct.pack(f"{order}HI", 42, first)
    for _ in range(few(random, 4)):
        entries = [_entry(random, order, len(out)) for _ in range(random.randrange(8))]
        said = len(entries) if random.random() < 0.8 else random.choice(NUMBERS) % 65536
        following = len(out) + 6 + 12 * len(entries)
        after = random.choice((0, 0, 8, following, random.choice(NUMBERS) % (1 << 32)))
        out += struct.pack(f"{order}H", said) + b"".join(entries) + struct.pack(f"{order}I", after)
    out += random.randbytes(random.choice((0, 16, 200)))
    return edited(random, out) if random.random() < 0.3 else out


def _entry(random: Random, order: str, here: int) -> bytes:
    tag = random.choice((0x0112, random.choice(_TAGS), random.randrange(65536)))
    kind = random.choice((3, 3, random.randrange(14), random.randrange(65536)))
    count = random.choice((1, 1, 2, random.choice(NUMBERS) % (1 << 32)))
    offset = random.choice((here, 8, 0, random.choice(NUMBERS) % (1 << 32)))
    value = struct.pack(f"{order}I", offset)
    if tag == 0x0112 and random.random() < 0.7:
        value = struct.pack(f"{order}HH", random.randrange(10), 0)
    return struct.pack(f"{order}HHI", tag, kind, count) + value


def parameters_text(random: Random) -> str:
    """What may stand where parameters are looked for."""
    depth = random.choice((3, 100, *range(960, 1010)))
    return random.choice(
        (
            lambda: json.dumps(
                {"prompt": "a dog", "seed": random.choice(NUMBERS), "pictures": [{}]}
            ),
            lambda: json.dumps(
                {"prompt": "\ud800\u202e\x1b[31m", "\0": None, "name": [1e308, -0.0]}
            ),
            lambda: '{"a": ' + "[" * depth + "]" * depth + "}",
            lambda: '{"a": ' * depth + "1" + "}" * depth,
            lambda: '{"seed": ' + "9" * random.choice((20, 400, 4300, 4301, 5000)) + "}",
            lambda: '{"a": NaN, "b": Infinity, "c": 1e999, "a": 2}',
            lambda: random.choice(("", "null", "[]", '"text"', "{", "true", "{}")),
        )
    )()


def xmp(random: Random) -> bytes:
    """A packet of XMP: as we write it, edited, or a bomb of XML."""
    good = xmp_packet(is_generated=random.random() < 0.5, parameters=parameters_text(random))
    count = random.choice((10, 1000, 20_000))
    nested = b"<a>" * count + b"</a>" * count
    entities = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><a>&b;</a>'
    return random.choice(
        (
            lambda: good,
            lambda: edited(random, good),
            lambda: edited(random, good),
            lambda: nested,
            lambda: nested[: len(nested) // 2],
            lambda: good.replace(b"<rdf:Description", nested + b"<rdf:Description"),
            lambda: good.replace(
                b"rdf:about", b" ".join(b'a%d=""' % n for n in range(count)) + b" rdf:about"
            ),
            lambda: entities,
            lambda: b'<?xml version="1.0" encoding="utf-16"?>' + good,
            lambda: good.decode("utf-8").encode("utf-16"),
            lambda: b"\0" * count,
        )
    )()


def profile(random: Random) -> bytes:
    """A colour profile, or something in its place."""
    head = struct.pack(">I4s12s4s4s", 128, b"lcms", b"\2\x10\0\0mntrRGB ", b"XYZ ", b"acsp")
    return edited(random, head + bytes(200)) if random.random() < 0.7 else random.randbytes(64)
