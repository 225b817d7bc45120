"""Files of subjects and tables: safetensors whose header, numbers and digest are edited apart."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.byte_edits import NUMBERS, edited, few, number_bytes
from tests.fuzz.trees import edited_tree, json_bytes, value

Header = dict[str, Any]

_DEEP = re.compile(r'"deep:(\d+)"')


def parts_of(file: bytes) -> tuple[Header, bytes]:
    """The header of a file that is whole, and its numbers."""
    (length,) = struct.unpack_from("<Q", file)
    header: Header = json.loads(file[8 : 8 + length])
    return header, file[8 + length :]


def file_of(text: bytes, data: bytes) -> bytes:
    """A file of a header and numbers, with the right length between them."""
    return struct.pack("<Q", len(text)) + text + data


def header_text(header: Header, **options: Any) -> str:
    """A header as JSON; a text `deep:N` becomes N lists within each other, which no writer does."""
    text = json.dumps(header, **options)
    return _DEEP.sub(lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)


def sign(header: Header, data: bytes) -> None:
    """Give a header the digest of what it and the numbers are, where that can be told."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return
    metadata.pop("sha256", None)
    digest = hashlib.sha256(header_text(header, sort_keys=True).encode())
    digest.update(data)
    metadata["sha256"] = digest.hexdigest()


def edited_tensors(random: Random, file: bytes, others: Sequence[bytes]) -> bytes:
    """Some edits of a file; mostly with the digest that belongs to it, so that more is read."""
    if random.random() < 0.1:
        return edited(random, file, others)
    header, data = parts_of(file)
    for _ in range(few(random, 4)):
        data = random.choice(_EDITS)(random, header, data)
    if random.random() < 0.85:
        sign(header, data)
    if random.random() < 0.15:
        text = json_bytes(random, header)
    else:
        text = header_text(header).encode()
    text += b" " * random.choice((0, 0, 7))
    made = file_of(text, data)
    if random.random() < 0.1:
        made = number_bytes(random, 8, is_big=False) + made[8:]
    return edited(random, made, others) if random.random() < 0.05 else made


def _entry(random: Random, header: Header) -> dict[str, Any] | None:
    names = [
        name for name, one in header.items() if name != "__metadata__" and isinstance(one, dict)
    ]
    found = header[random.choice(names)] if names else None
    return found if isinstance(found, dict) else None


def _edit_shape(random: Random, header: Header, data: bytes) -> bytes:
    entry = _entry(random, header)
    if entry is None:
        return data
    shape = entry.get("shape")
    old = list(shape) if isinstance(shape, list) else [1]
    count = old[0] if old and isinstance(old[0], int) else 1
    entry["shape"] = random.choice(
        (
            old[::-1],
            [1, *old],
            old[:-1],
            [*old, 1, 1, 1, 1],
            [count * 2, *old[1:]],
            [*old, random.choice((*NUMBERS, 2**63, 2**64, 10**30, -1))],
            [value(random), *old],
        )
    )
    return data


def _edit_kind(random: Random, header: Header, data: bytes) -> bytes:
    entry = _entry(random, header)
    if entry is not None:
        kinds = ("F16", "BF16", "F8_E4M3", "I8", "U8", "F64", "I64", "BOOL", "O", "", None, 1)
        entry["dtype"] = random.choice(kinds)
    return data


def _edit_offsets(random: Random, header: Header, data: bytes) -> bytes:
    entry = _entry(random, header)
    if entry is not None:
        numbers = (*NUMBERS, len(data), len(data) + 1, -1, 2**62, 2**64, 1.5, None)
        entry["data_offsets"] = random.choice(
            (
                [random.choice(numbers), random.choice(numbers)],
                [random.choice(numbers)],
                {"0": 0},
                list(entry.get("data_offsets") or [0])[::-1],
            )
        )
    return data


def _edit_numbers(random: Random, header: Header, data: bytes) -> bytes:
    """NaN, infinity, large and small numbers where tensors lie."""
    out = bytearray(data)
    odd = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\0\0\0\x80")
    for _ in range(few(random)):
        at = 4 * random.randrange(len(out) // 4 + 1)
        out[at : at + 4] = random.choice((*odd, random.randbytes(4)))[: max(0, len(out) - at)]
    return bytes(out)


def _add_empty(random: Random, header: Header, data: bytes) -> bytes:
    """A tensor of no bytes, whose other sides may be of any length."""
    sides = [0, random.choice((0, 1, 2**31, 2**62, 2**63 - 1, 2**63, 2**70, 10**40))]
    names = ("latents", "preview", "prompt_states", "more", "table.0.9.k", "\ud800", "")
    kind = random.choice(("F32", "U8", "BF16", "F8_E4M3"))
    entry = {"dtype": kind, "shape": sides * random.choice((1, 2)), "data_offsets": [len(data)] * 2}
    header[random.choice(names)] = entry
    return data


def _add_bytes(random: Random, header: Header, data: bytes) -> bytes:
    more = random.randbytes(random.choice((1, 4, 192)))
    entry = {
        "dtype": "U8",
        "shape": [len(more)],
        "data_offsets": [len(data), len(data) + len(more)],
    }
    header[random.choice(("preview", "more", "table.0.0.k_scale", "a" * 3000))] = entry
    return data + more


def _edit_metadata(random: Random, header: Header, data: bytes) -> bytes:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not metadata:
        return data
    name = random.choice(sorted(metadata, key=str))
    try:
        inner = json.loads(metadata[name])
    except (TypeError, ValueError, RecursionError):
        inner = None
    if isinstance(inner, dict):
        text = json_bytes(random, edited_tree(random, inner))
        metadata[name] = text.decode("utf-8", random.choice(("replace", "surrogateescape")))
    else:
        metadata[name] = random.choice((value(random), "1", "2", "bootpig-rt table"))
    return data


def _edit_header(random: Random, header: Header, data: bytes) -> bytes:
    new = edited_tree(random, header)
    if isinstance(new, dict):
        header.clear()
        header.update(new)
    return data


def _nest(random: Random, header: Header, data: bytes) -> bytes:
    """Lists so deep that some readers of JSON take them, and some writers do not."""
    entry = _entry(random, header)
    if entry is not None:
        entry["more"] = f"deep:{random.randrange(900, 1000)}"
    return data


_EDITS: tuple[Callable[[Random, Header, bytes], bytes], ...] = (
    *(_edit_shape, _edit_kind, _edit_offsets, _edit_numbers, _edit_numbers),
    *(_add_empty, _add_bytes, _edit_metadata, _edit_metadata, _edit_metadata),
    *(_edit_header, _nest),
)
