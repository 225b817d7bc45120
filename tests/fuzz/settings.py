"""Files of who runs a service or keeps pairs: manifests, keys, options, blocklists, kept subjects.

The first line of an input names the file that the rest is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tests.fuzz.byte_edits import edited, few, rearranged
from tests.fuzz.trees import TEXTS, edited_tree, json_bytes, value

_KEY = {
    "id": "0123abcd",
    "name": "me",
    "role": "admin",
    "salt": "0" * 32,
    "hash": "f" * 64,
    "created_at": "2026-01-01T00:00:00Z",
    "quota": {"max_waiting": 3, "subject_bytes": None, "images_per_minute": 60},
}
_PAIR = {
    "format": 1,
    "name": "tiny",
    "sample_size_px": 32,
    "reference_timestep": "mixed",
    "subject_share": 0.86,
    "merge": "argmax",
    "max_references": 3,
    "default_steps": 2,
    "default_solver": "ddim",
    "image_guidance_scale": 4.0,
    "shared_unet": False,
}
_OPTIONS = """\
# a service
host = "127.0.0.1"
port = 8000
max_batch = 8
max_body_bytes = "32MiB"
body_timeout_s = "30s"
default_deadline_s = "none"
warmup_batches = [1, 4]
page = true
safety_threshold = 0.8
allowed_origins = ["https://example.org"]

[models]
small = "folder"
"""
_BLOCKLIST = "# words\nknife\nC++\nre: blo+d\n\ntwo words\n"
_TOML: tuple[str, ...] = (
    "1979-05-27T07:32:00Z",
    "1979-13-41",
    "25:61:00",
    "inf",
    "nan",
    "0xFF",
    "1_000",
    '"""\n',
    "'''",
)
_TOML += (
    "9" * 4301,
    "[" * 990 + "]" * 990,
    "{a.b.c = 1}",
    "[[a]]",
    "a.a = 1",
    "[models]",
    "\\u0000",
)
_TOML += ('"\\ud800"', "-0", "1e999", "[1, 'a', {}]", "true", "=", "[a.b]\n[a]", "\x00", "\ufeff")


def settings_input(random: Random, manifest: bytes) -> bytes:
    """A file of one of the kinds, named in its first line.

    Args:
        random: Draws it.
        manifest: Of a bundle.
    """
    name = random.choice(sorted(_MAKERS))
    return name.encode() + b"\n" + _MAKERS[name](random, manifest)


def _manifest(random: Random, manifest: bytes) -> bytes:
    tree: Any = json.loads(manifest)
    if random.random() < 0.3:
        path = random.choice(
            (*TEXTS, "a/" * 3000, "a" * 300, "/etc/passwd", "a//b", "./a", "a/../b")
        )
        tree["files"][random.randrange(len(tree["files"]))]["path"] = path
    return _json(random, tree)


def _json(random: Random, tree: Any) -> bytes:
    return json_bytes(random, edited_tree(random, tree))


def _keys(random: Random, _: bytes) -> bytes:
    keys = [_KEY | {"id": f"{n:08x}"} for n in range(random.choice((0, 1, 2, 30)))]
    return _json(random, {"format": 1, "keys": keys})


def _signature(random: Random, _: bytes) -> bytes:
    tree = {"algorithm": "ed25519", "public_key": "ab" * 32, "signature": "cd" * 64}
    return _json(random, tree)


def _options(random: Random, _: bytes) -> bytes:
    lines = _OPTIONS.splitlines()
    for _edit in range(few(random)):
        at = random.randrange(len(lines))
        name, equals, _rest = lines[at].partition("=")
        match random.randrange(4):
            case 0:
                lines = rearranged(random, lines) or lines
            case 1:
                lines[at] = f"{name}{equals} {random.choice(_TOML)}"
            case 2:
                lines[at] = f"{name}{equals} {json.dumps(value(random))}"[:5000]
            case _:
                lines.insert(at, random.choice(_TOML))
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return edited(random, data) if random.random() < 0.3 else data


def _blocklist(random: Random, _: bytes) -> bytes:
    patterns: tuple[str, ...] = (
        "(" * 200,
        "re: (",
        "re: a{65536}",
        "re: [",
        "re: ",
        "re: (?i",
        "re: (?P<a>b)\\1",
    )
    patterns += ("re: " + "(" * 150 + ")" * 150, "re: \\", "re: a{9999999999}", "\u200b", "re: .*")
    lines = rearranged(random, [*_BLOCKLIST.splitlines(), random.choice((*patterns, *TEXTS))])
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return edited(random, data) if random.random() < 0.4 else data


def _kept_subject(random: Random, _: bytes) -> bytes:
    tree = {
        "id": "sub_" + "0" * 24,
        "tenant": "me",
        "model": "tiny",
        "reference_prompt": "a dog",
        "noise_seed": 0,
        "num_references": 1,
        "created_at": 1.0,
        "ttl_s": 1.0,
        "used_at": 1.0,
        "is_explicit": True,
        "images": ["iVBORw0KGgo="],
        "subject": None,
        "origins": [{"sha256": "0" * 64, "archive": None}],
    }
    return _json(random, tree)


_MAKERS: Mapping[str, Callable[[Random, bytes], bytes]] = {
    "manifest.json": _manifest,
    "manifest.sig": _signature,
    "pair.json": lambda random, _: _json(random, _PAIR),
    "keys.json": _keys,
    "serve.toml": _options,
    "blocklist.txt": _blocklist,
    "kept.json": _kept_subject,
}
