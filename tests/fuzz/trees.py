"""Values as JSON has them: edited as trees, then written as text that may be edited once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.byte_edits import NUMBERS, edited, few

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "\0",
    "a\nb",
    "\ud800",
    "\udfff\ud800",
    "\u202e",
    "\ufeff",
    "é" * 50,
    "🐕",
)
TEXTS += ("a" * 10_001, "../../etc/passwd", "data:image/png;base64,AAAA", "http://127.0.0.1/x.png")
TEXTS += ("auto", "64x64", "none", "true", "1e999", "NaN", "-1", "sub_" + "0" * 24, "__proto__")


def value(random: Random) -> Any:
    """Some value that fits few places."""
    return random.choice(
        (
            lambda: random.choice(TEXTS),
            lambda: random.choice(TEXTS),
            lambda: random.choice(NUMBERS) * random.choice((1, -1)),
            lambda: 10 ** random.choice((18, 19, 20, 40, 308, 309, 400, 4299)),
            lambda: random.choice((0.5, -0.0, 1e-308, 1e308, float("inf"), float("nan"))),
            lambda: random.choice((None, True, False, [], {}, [[]], {"": {}})),
            lambda: nested(random.choice((2, 60, 200, 400))),
            lambda: [random.choice(TEXTS)] * random.choice((1, 65, 3000)),
        )
    )()


def nested(depth: int) -> Any:
    """Lists within lists."""
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


def edited_tree(random: Random, tree: Any) -> Any:
    """A copy of a tree with some values, names or members changed."""
    for _ in range(few(random, 6)):
        tree = _edit(random, tree, 0)
    return tree


def _edit(random: Random, tree: Any, depth: int) -> Any:
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.1 or depth > 40:
        return value(random) if depth or random.random() < 0.2 else tree
    items: list[tuple[Any, Any]]
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    at = random.randrange(len(items))
    name, inner = items[at]
    match random.randrange(6):
        case 0:
            del items[at]
        case 1:
            items.append((random.choice((*TEXTS, name)), inner))
        case 2:
            items[at] = (random.choice(TEXTS), inner)
        case 3:
            other = random.choice(items)[1]
            items[at] = (name, other)
        case _:
            items[at] = (name, _edit(random, inner, depth + 1))
    return dict(items) if isinstance(tree, dict) else [inner for _, inner in items]


def json_bytes(random: Random, tree: Any) -> bytes:
    """A tree as JSON, mostly right: some keys twice, other encodings, edits, deep nesting."""
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.6:
        return data
    return random.choice(_WRITERS)(random, data)


def deep(random: Random) -> int:
    """A depth about which readers give up."""
    depths: tuple[int, ...] = (50, 500, *range(900, 1010, 2), 5000, 100_000)
    return random.choice(depths)


def _with_deep_value(random: Random, data: bytes) -> bytes:
    depth = deep(random)
    begin, end = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = begin * depth + b"1" + (end * depth if random.random() < 0.7 else b"")
    return data[:-1] + b', "a": ' + inner + data[-1:]


def _with_key_twice(random: Random, data: bytes) -> bytes:
    return data[:-1] + b"," + data[1:]


def _in_other_encoding(random: Random, data: bytes) -> bytes:
    name = random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "latin-1"))
    return data.decode("utf-8", "replace").encode(name, "replace")


def _with_long_number(random: Random, data: bytes) -> bytes:
    digits = b"9" * random.choice((20, 310, 4300, 4301, 100_000))
    number = random.choice((digits, b"-" + digits, digits + b"e" + digits[:9], b"0." + digits))
    return data[:-1] + b', "n": ' + number + data[-1:]


def _with_edits(random: Random, data: bytes) -> bytes:
    return edited(random, data, (b"NaN", b"Infinity", b'"\\ud800"', b"\\u0000", b"[[[[", b"}}"))


_WRITERS: Sequence[Callable[[Random, bytes], bytes]] = (
    *(_with_deep_value, _with_key_twice, _in_other_encoding, _with_long_number),
    *(_with_edits, _with_edits, _with_edits),
)
