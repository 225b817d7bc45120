"""Edits of bytes that know nothing of what the bytes mean, and how to draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

MAX_BYTES = 1 << 20
"""No edit makes an input longer than that."""

NUMBERS: tuple[int, ...] = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    4095,
    32767,
    32768,
    65535,
    65536,
)
NUMBERS += (1 << 20, (1 << 24) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)
"""What lengths, counts and offsets are often compared with."""

ItemT = TypeVar("ItemT")


def few(random: Random, most: int = 12) -> int:
    """1 more often than 2, and so on."""
    count = 1
    while count < most and random.random() < 0.55:
        count += 1
    return count


def edited(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Some edits of the bytes of a file.

    Args:
        random: Draws them.
        data: To edit.
        others: Files that parts may come from.
    """
    out = bytearray(data)
    for _ in range(few(random)):
        random.choice(_EDITS)(random, out, others)
    return bytes(out[:MAX_BYTES])


def number_bytes(random: Random, width: int, *, is_big: bool = True) -> bytes:
    """A number of some bytes, near one that matters."""
    value = random.choice(NUMBERS) + random.choice((0, 0, 0, -1, 1))
    return (value % (1 << 8 * width)).to_bytes(width, "big" if is_big else "little")


def rearranged(random: Random, items: Sequence[ItemT]) -> list[ItemT]:
    """Some items left out, there twice, or in another order."""
    out = list(items)
    for _ in range(few(random, 4)):
        if not out:
            break
        at, to = random.randrange(len(out)), random.randrange(len(out))
        match random.randrange(4):
            case 0:
                del out[at]
            case 1:
                out.insert(to, out[at])
            case 2:
                out[at], out[to] = out[to], out[at]
            case _:
                out[at:at] = out[at : at + 1] * random.choice((2, 5, 40))
    return out


def _place(random: Random, out: bytearray) -> tuple[int, int]:
    begin = random.randrange(len(out) + 1)
    return begin, min(len(out), begin + random.choice((1, 2, 4, 16, 64, 1024)))


def _flip(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    if out:
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)


def _set(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    if out:
        out[random.randrange(len(out))] = random.choice((0, 1, 127, 128, 254, 255, 10, 13, 34))


def _number(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    width = random.choice((2, 4, 8))
    at = random.randrange(max(1, len(out) - width + 1))
    out[at : at + width] = number_bytes(random, width, is_big=random.random() < 0.5)


def _cut_out(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    begin, end = _place(random, out)
    del out[begin:end]


def _repeat(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    begin, end = _place(random, out)
    out[begin:begin] = out[begin:end] * random.choice((1, 2, 17))


def _fill(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    begin, end = _place(random, out)
    out[begin:end] = random.choice((b"\0", b"\xff", b"A", b"\n")) * (end - begin)


def _random(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    begin, end = _place(random, out)
    out[begin:end] = random.randbytes(end - begin)


def _truncate(random: Random, out: bytearray, _: Sequence[bytes]) -> None:
    del out[random.randrange(len(out) + 1) :]


def _splice(random: Random, out: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = random.choice(others)
        begin, end = _place(random, out)
        at = random.randrange(len(other) + 1)
        out[begin:end] = other[at : at + random.choice((4, 64, 1024, 1 << 16))]


_EDITS: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _set, _set, _number, _number),
    *(_cut_out, _repeat, _fill, _random, _truncate, _splice),
)
