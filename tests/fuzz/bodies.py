"""Bodies of the HTTP API: JSON and forms, with pictures and files of subjects in them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz.byte_edits import edited, few
from tests.fuzz.trees import TEXTS, edited_tree, json_bytes, value

MakeFile = Callable[[Random], bytes]

SUBJECT_ID = "sub_" + "fedcba9876543210" + "00000000"
"""Stands for the id of a subject that the server has."""

_DRAW: dict[str, Any] = {"prompt": "a dog", "num_inference_steps": 1, "size": "auto", "n": 1}
_MORE: dict[str, Any] = {
    "model": "pair",
    "seed": 3,
    "solver": "ddim",
    "merge": "mean",
    "negative_prompt": "a cat",
    "guidance_interval": [0.1, 0.9],
    "reference_schedule": "clean+window:0-0.5",
    "approximation": "cache:2+window:0-0.5",
    "output_format": "webp",
    "output_compression": 50,
    "response_format": "b64_json",
    "image_guidance_scale": 1.5,
    "text_guidance_scale": 2,
    "store_subject": False,
    "noise_seed": 5,
    "user": "me",
    "stream": True,
    "partial_images": 1,
    "preview_every": 1,
    "progress": True,
    "deadline_s": 60.0,
}


@dataclass(frozen=True)
class Body:
    """A body of a request.

    Attributes:
        content_type: As its header says.
        data: What follows the headers.
    """

    content_type: str
    data: bytes


def fields(random: Random) -> dict[str, Any]:
    """Fields of a picture, all of them right."""
    more = random.sample(sorted(_MORE), random.randrange(5))
    return _DRAW | {name: _MORE[name] for name in more}


def json_body(random: Random, picture: MakeFile, *, is_edit: bool) -> Body:
    """The JSON of a picture, of an edit with its images as data."""
    tree = fields(random)
    if is_edit:
        tree["images"] = [{"image_url": _data_url(random, picture)} for _ in range(few(random, 4))]
        if random.random() < 0.7:
            tree["reference_prompt"] = "a photo of a dog"
    elif random.random() < 0.3:
        tree["subject_id"] = SUBJECT_ID
    if random.random() < 0.7:
        tree = edited_tree(random, tree)
    data = json_bytes(random, tree)
    types = ("application/json; charset=utf-8", "application/JSON", "text/json", "")
    return Body("application/json" if random.random() < 0.95 else random.choice(types), data)


def _data_url(random: Random, picture: MakeFile) -> str:
    kind = random.choice(("png", "jpeg", "webp", "svg+xml"))
    text = base64.b64encode(picture(random)).decode()
    if random.random() < 0.1:
        text = edited(random, text.encode()).decode("latin-1")
    return f"data:image/{kind};base64,{text}"


def form_body(
    random: Random,
    texts: dict[str, Any],
    files: Sequence[tuple[str, bytes]],
) -> Body:
    """A form of fields and files: right, or wrong in its parts, its frame or its header."""
    if random.random() < 0.4:
        name = random.choice((*texts, *TEXTS[:8], "file", "image"))
        texts = texts | {name: value(random)}
    parts = [_part(random, name, _text(one), None) for name, one in texts.items()]
    parts += [_part(random, name, data, "x.png") for name, data in files]
    if random.random() < 0.3:
        random.shuffle(parts)
    if random.random() < 0.1:
        parts *= random.choice((2, 30, 65, 300))
    boundary = b"b" if random.random() < 0.85 else random.choice(_BOUNDARIES)
    end = b"\r\n" if random.random() < 0.9 else random.choice((b"\n", b"\r", b"\r\n\r\n", b" \r\n"))
    data = b"".join(b"--" + boundary + end + part + end for part in parts)
    if random.random() < 0.95:
        data += b"--" + boundary + b"--" + random.choice((b"", end, b"trailing", b"--"))
    if random.random() < 0.1:
        data = random.choice((b"\r\n", b"preamble\r\n", b"\n\n")) + data
    if random.random() < 0.15:
        data = edited(random, data, (b"--b\r\n", b"\r\n--b--", b'name="', b"\r\n\r\n"))
    return Body(_content_type(random, boundary), data)


_BOUNDARIES = (b"--", b"-", b"b" * 70, b"b" * 300, b"a b", b"'()+_,-./:=?", b"\xe9", b"", b"b\0")


def _text(one: Any) -> bytes:
    text = one if isinstance(one, str) else str(one).lower() if one in (True, False) else str(one)
    return text.encode("utf-8", "surrogatepass")


def _part(random: Random, name: str, data: bytes, filename: str | None) -> bytes:
    shown = name.encode("utf-8", "surrogatepass")
    head = b'Content-Disposition: form-data; name="' + shown + b'"'
    if filename is not None:
        head += b'; filename="' + filename.encode() + b'"'
    if random.random() < 0.1:
        head = random.choice(_HEADS)(random, head, shown)
    if random.random() < 0.03:
        data = form_body(random, {"a": "b"}, ()).data  # a form in a form
    return head + b"\r\n\r\n" + data


_HEADS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    lambda random, head, name: edited(random, head),
    lambda random, head, name: b"Content-Type: image/png\r\n" + head,
    lambda random, head, name: head + b"\r\nContent-Type: multipart/mixed; boundary=c",
    lambda random, head, name: head + b"\r\nContent-Transfer-Encoding: base64",
    lambda random, head, name: head + b"\r\n" + head,
    lambda random, head, name: head + b"\r\n" + b"X: a\r\n" * random.choice((5, 500)) + b"X: a",
    lambda random, head, name: b"X-A: " + b"a" * random.choice((100, 9000)) + b"\r\n" + head,
    lambda random, head, name: b"Content-Disposition: form-data; name*=utf-8''" + name,
    lambda random, head, name: b"Content-Disposition: form-data; name*=" + _charset(random) + name,
    lambda random, head, name: b"content-disposition:form-data;name=" + name + b";filename=x",
    lambda random, head, name: head + b"; filename*=" + _charset(random) + b"%e4%b8%ad%0a",
    lambda random, head, name: head + b"; filename*0=a; filename*1*=%ff; filename*9=b",
    lambda random, head, name: head + b'; name="other"; name*0="a"',
    lambda random, head, name: b"Content-Disposition: attachment; name=x",
    lambda random, head, name: b"Content-Disposition: =?utf-8?q?form-data?=; name=" + name,
    lambda random, head, name: b"",
    lambda random, head, name: b": form-data",
    lambda random, head, name: head.replace(b'"', b"'"),
    lambda random, head, name: head + b'; filename="\\"\\\\' + b"\\" * 300,
    lambda random, head, name: b"Content-Disposition: form-data" + b"; a=b" * 2000,
)


def _charset(random: Random) -> bytes:
    return random.choice(
        (b"utf-16''", b"punycode''", b"idna''", b"undefined''", b"x''", b"''", b"'")
    )


def _content_type(random: Random, boundary: bytes) -> str:
    shown = boundary.decode("latin-1")
    usual = f"multipart/form-data; boundary={shown}"
    if random.random() < 0.85:
        return usual
    return random.choice(
        (
            f'multipart/form-data; boundary="{shown}"',
            f"{usual}; charset={random.choice(('utf-8', 'UTF8', 'utf-16', 'idna', 'hex', ''))}",
            f"multipart/form-data; boundary*=utf-16''{shown}",
            f"multipart/form-data; boundary*0={shown}; boundary*1=c",
            f"{usual}; boundary=c",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            f"multipart/mixed; boundary={shown}",
            "application/x-www-form-urlencoded",
            f"Multipart/Form-Data;BOUNDARY={shown}",
            f"multipart/form-data; boundary={shown}; charset*=x'y'z",
            edited(random, usual.encode("latin-1")).decode("latin-1"),
        )
    )
