"""Files of subjects that nobody should send, ids that are none, and whose subjects are whose."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bootpig_rt import Subject

Check = Callable[..., dict[str, Any]]
DRAW = "/v1/images/generations"
FIELDS = {"reference_prompt": "a photo of a disc"}


@pytest.fixture
def upload(client: httpx.Client) -> Callable[[bytes], httpx.Response]:
    def send(file: bytes) -> httpx.Response:
        return client.post("/v1/subjects", files={"file": ("x", file)})

    return send


@pytest.fixture
def good(client: httpx.Client, reference_png: bytes, tmp_path: Path) -> Subject:
    """A subject as the server encodes it."""
    made = client.post("/v1/subjects", data=FIELDS, files={"image": reference_png}).json()
    path = tmp_path / "good.subject"
    path.write_bytes(client.get(f"/v1/subjects/{made['id']}/file").content)
    return Subject.load(path)


@pytest.fixture
def file_of(good: Subject, tmp_path: Path) -> Callable[..., bytes]:
    """A file that is whole and has its right digests, of a subject with some fields changed."""

    def write(**changes: Any) -> bytes:
        names = ("latents", "reference_prompt", "noise_seed", "pair_fingerprint", "prompt_states")
        fields = {name: getattr(good, name) for name in (*names, "preview", "pixels_sha256")}
        path = tmp_path / "changed.subject"
        Subject(pixels=None, **(fields | changes)).save(path)
        return path.read_bytes()

    return write


def test_only_numbers_that_an_encoder_gives_are_taken(
    upload: Callable[[bytes], httpx.Response],
    file_of: Callable[..., bytes],
    good: Subject,
    check_refusal: Check,
) -> None:
    assert upload(file_of()).status_code == 201
    for value in (np.nan, np.inf, -np.inf, 3e38, -1e6):
        latents = np.array(good.latents)
        latents[0, 0, 0, 0] = value
        error = check_refusal(upload(file_of(latents=latents)), 400, "invalid_subject_file", "file")
        assert "/" not in error["message"]
        states = np.full((24, 16), value, np.float32)
        answer = upload(file_of(prompt_states=states))
        check_refusal(answer, 400, "invalid_subject_file", "file")


def test_shapes_and_pairs_that_do_not_fit_are_refused_before_anything_is_drawn(
    upload: Callable[[bytes], httpx.Response],
    file_of: Callable[..., bytes],
    good: Subject,
    check_refusal: Check,
) -> None:
    many = np.repeat(good.latents, 4, axis=0)
    check_refusal(upload(file_of(latents=many)), 400, "too_many_images", "file")
    none = np.zeros((0, 4, 8, 8), np.float32)
    check_refusal(upload(file_of(latents=none)), 400, "invalid_subject_file", "file")
    other = np.zeros((1, 4, 9, 9), np.float32)
    check_refusal(upload(file_of(latents=other)), 409, "subject_mismatch")
    check_refusal(upload(file_of(pair_fingerprint="0" * 64)), 409, "subject_mismatch")
    check_refusal(upload(file_of(prompt_states=np.zeros((3, 3), "f4"))), 409, "subject_mismatch")
    flat = np.zeros((0, 8, 3), np.uint8)
    check_refusal(upload(file_of(preview=flat)), 400, "invalid_subject_file", "file")


@pytest.mark.parametrize("prompt", ["", "  ", "a\0b", "a" * 10_001])
def test_a_reference_prompt_in_a_file_is_checked_like_any(
    upload: Callable[[bytes], httpx.Response],
    file_of: Callable[..., bytes],
    check_refusal: Check,
    prompt: str,
) -> None:
    answer = upload(file_of(reference_prompt=prompt))
    check_refusal(answer, 400, "invalid_subject_file", "file")


def parts_of(file: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def whole(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def signed(header: dict[str, Any], data: bytes) -> bytes:
    """As `whole`, with the digest that belongs to what is in it."""
    metadata = header["__metadata__"]
    metadata.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    names = [name for name in header if name != "__metadata__"]
    for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
        begin, end = header[name]["data_offsets"]
        digest.update(data[begin:end])
    metadata["sha256"] = digest.hexdigest()
    return whole(header, data)


@pytest.mark.parametrize(
    "damage",
    [
        *("pickle", "pickle in a header", "zip", "empty", "eight bytes", "header of 2^63"),
        *("header over the file", "no JSON", "a list", "deep header", "cut", "longer", "bit"),
        *("overlap", "gap", "negative", "huge shape", "wrong shape", "sparse", "object type"),
        *("f64", "extra tensor", "extra field", "no metadata", "other schema", "text digest"),
    ],
)
def test_a_file_that_is_no_subject_is_refused(
    upload: Callable[[bytes], httpx.Response],
    file_of: Callable[..., bytes],
    check_refusal: Check,
    damage: str,
) -> None:
    file = file_of()
    header, data = parts_of(file)
    entry = header["latents"]
    match damage:
        case "pickle":
            file = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n."
        case "pickle in a header":
            file = struct.pack("<Q", 12) + b"cos\nsystem\n." + data
        case "zip":
            file = b"PK\3\4" + bytes(100)
        case "empty" | "eight bytes":
            file = b"" if damage == "empty" else bytes(8)
        case "header of 2^63":
            file = struct.pack("<Q", 1 << 63) + file[8:]
        case "header over the file":
            file = struct.pack("<Q", len(file)) + file[8:]
        case "no JSON" | "a list":
            file = struct.pack("<Q", 4) + (b"nope" if damage == "no JSON" else b"[1] ") + data
        case "deep header":
            file = struct.pack("<Q", 40_000) + b"[" * 40_000 + data
        case "cut" | "longer":
            file = file[:-1] if damage == "cut" else file + b"\0"
        case "bit":
            file = file[:-3] + bytes([file[-3] ^ 4]) + file[-2:]
        case "overlap":
            header["preview"]["data_offsets"][0] = 0
            file = signed(header, data)
        case "gap":
            file = signed(header, data + bytes(8))
        case "negative":
            entry["data_offsets"] = [-4, entry["data_offsets"][1]]
            file = whole(header, data)
        case "huge shape":
            entry["shape"] = [2**62, 2**62, 0, 1]
            file = signed(header, data)
        case "wrong shape":
            entry["shape"] = [4, 1, 8, 8]
            file = signed(header, data)
        case "sparse":
            entry["layout"] = "sparse_coo"
            header["indices"] = {"dtype": "I64", "shape": [0], "data_offsets": [len(data)] * 2}
            file = signed(header, data)
        case "object type" | "f64":
            entry["dtype"] = "F64" if damage == "f64" else "O"
            file = signed(header, data)
        case "extra tensor":
            header["more"] = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
            for name in set(header) - {"more", "__metadata__"}:
                header[name]["data_offsets"] = [8 + at for at in header[name]["data_offsets"]]
            file = signed(header, bytes(8) + data)
        case "extra field":
            fields = json.loads(header["__metadata__"]["subject"])
            header["__metadata__"]["subject"] = json.dumps(fields | {"code": "import os"})
            file = signed(header, data)
        case "no metadata":
            del header["__metadata__"]
            file = whole(header, data)
        case "other schema":
            header["__metadata__"]["schema"] = "999"
            file = signed(header, data)
        case "text digest":
            header["__metadata__"]["sha256"] = "\ud800"
            file = whole(header, data)
    error = check_refusal(upload(file), 400, "invalid_subject_file", "file")
    assert "/" not in error["message"]


@pytest.mark.parametrize(
    "id",
    ["..%2F..%2Fetc%2Fpasswd", "sub_x", "sub_" + "0" * 24, "sub_" + "A" * 24, "%00", "a" * 3000],
)
def test_an_id_that_is_none_leads_nowhere(
    client: httpx.Client, check_refusal: Check, id: str
) -> None:
    for method, rest in (("GET", ""), ("GET", "/preview"), ("GET", "/file"), ("DELETE", "")):
        check_refusal(client.request(method, f"/v1/subjects/{id}{rest}"), 404)
    body = {"prompt": "a dog", "subject_id": id}
    answer = client.post(DRAW, json=body)
    assert answer.status_code == (404 if id == "sub_" + "0" * 24 else 400)
    assert answer.json()["error"]["param"] == "subject_id"


def test_tables_in_a_file_count_as_what_they_take(
    client: httpx.Client,
    upload: Callable[[bytes], httpx.Response],
    tiny_bundle_folder: Path,
    tmp_path: Path,
    disc: Callable[..., Any],
) -> None:
    from bootpig_rt import Pipeline

    path = tmp_path / "full.subject"
    with Pipeline(tiny_bundle_folder) as pipe:
        pipe.encode_subject(disc(), "a disc", keep_table=True).save(path, form="full")
    made = upload(path.read_bytes())
    assert made.status_code == 201, made.text
    assert made.json()["bytes"] > 0.8 * path.stat().st_size
    body = {"prompt": "a disc", "subject_id": made.json()["id"]}
    assert client.post(DRAW, json=body).json()["reference_passes"] == 0
