"""Bodies that are not what they say, too large, too slow, or made to be hard to read."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import pytest

DRAW = "/v1/images/generations"
JSON = {"content-type": "application/json"}
Check = Callable[..., dict[str, Any]]
Form = Callable[..., tuple[str, bytes]]
Part = Callable[..., bytes]
Post = Callable[[tuple[str, bytes]], httpx.Response]


@pytest.fixture
def post(client: httpx.Client) -> Post:
    """Send a form to where references are looked at."""

    def send(form: tuple[str, bytes]) -> httpx.Response:
        kind, body = form
        return client.post("/v1/subjects/preview", content=body, headers={"content-type": kind})

    return send


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 10_000, id="deep lists"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="deep objects"),
        pytest.param(b'{"prompt": "a", "prompt": "b"}', id="a key twice"),
        pytest.param(b'{"prompt": "a"', id="cut"),
        pytest.param(b'\xef\xbb\xbf{"prompt": "a"}', id="byte order mark"),
        pytest.param('{"prompt": "a"}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"prompt": "é"}'.encode("latin-1"), id="Latin-1"),
        pytest.param(b'{"prompt": "\xed\xa0\x80"}', id="surrogate in UTF-8"),
        pytest.param(b'{"prompt": "a"} {}', id="two values"),
        pytest.param(b"['a']", id="other quotes"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"1" * 5000, id="a long number"),
    ],
)
def test_what_is_no_json_object_is_refused(
    client: httpx.Client, check_refusal: Check, body: bytes
) -> None:
    answer = client.post(DRAW, content=body, headers=JSON | {"x-request-id": "bad-json"})
    check_refusal(answer, 400, "invalid_json", None)
    assert answer.headers["x-request-id"] == "bad-json"


def test_values_are_counted_before_memory_is_taken_for_them(
    server: Any, client: httpx.Client, check_refusal: Check, usage_of: Callable[[Any], Any]
) -> None:
    bodies = [
        b'{"prompt": "a", "images": [' + b"[]," * (8 << 20) + b"[]]}",
        b'{"prompt": "a"' + b"".join(b',"k%d":1' % n for n in range(1 << 20)) + b"}",
    ]
    client.post("/v1/images/edits", content=b" " * (24 << 20), headers=JSON)
    usage = usage_of(server)
    before = usage.now_mib()
    for body in bodies:
        answer = client.post("/v1/images/edits", content=body, headers=JSON)
        check_refusal(answer, 400, "invalid_json", None)
    assert usage.peak_mib() - before < 3 * 24 + 64  # copies of the body, and no more


@pytest.mark.parametrize("kind", ["", "text/plain", "text/xml", "multipart/form-data; boundary=b"])
def test_another_type_than_json_is_415(
    client: httpx.Client, check_refusal: Check, kind: str
) -> None:
    answer = client.post(DRAW, content=b"{}", headers={"content-type": kind})
    check_refusal(answer, 415, "unsupported_media_type")


def test_a_compressed_body_is_never_unpacked(
    server: Any, client: httpx.Client, check_refusal: Check, usage_of: Callable[[Any], Any]
) -> None:
    bomb = gzip.compress(bytes(128 << 20), 9)
    usage = usage_of(server)
    before = usage.now_mib()
    for coding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
        headers = JSON | {"content-encoding": coding}
        answer = client.post(DRAW, content=bomb, headers=headers)
        check_refusal(answer, 415, "unsupported_media_type")
    assert usage.peak_mib() - before < 16


def test_a_body_over_the_limit_is_refused_unread_and_cut_off_where_its_length_lies(
    server: Any, client: httpx.Client, send_raw: Callable[..., Any]
) -> None:
    head = f"POST {DRAW} HTTP/1.1\r\nContent-Type: application/json\r\n"
    assert send_raw(server, head + "Content-Length: 99999999").code == "body_too_large"
    assert send_raw(server, head + f"Content-Length: {10**30}").status == 400
    assert send_raw(server, head + "Content-Length: -1").status == 400
    assert send_raw(server, head + "Content-Length: 2\r\nContent-Length: 3", b"{}").status == 400
    chunked = head + "Transfer-Encoding: chunked"
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    assert send_raw(server, chunked, 5 * chunk).code == "body_too_large"
    both = chunked + "\r\nContent-Length: 2"
    assert send_raw(server, both, b"2\r\n{}\r\n0\r\n\r\n").status == 400
    assert client.get("/readyz").status_code == 200


def test_a_body_that_drips_or_never_ends_is_given_up_and_frees_its_place(
    run_server: Any, reference_png: bytes
) -> None:
    head = (
        "POST /v1/subjects/preview HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n"
    )
    with run_server("--body-timeout-s", "0.5", "--max-uploads", "1") as server:
        where = ("127.0.0.1", server.port)
        begun = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for length, first, drip in (
            ("Content-Length: 1000", begun, b"a"),
            ("Transfer-Encoding: chunked", b"", b""),
        ):
            with closing(socket.create_connection(where, 20)) as slow:
                slow.sendall(f"{head}{length}\r\n\r\n".encode() + first)
                with server.client() as client:
                    files = {"image": reference_png}
                    busy = client.post("/v1/subjects/preview", files=files)
                    assert busy.json()["error"]["code"] == "too_many_uploads"
                    assert busy.status_code == 503
                    assert client.get("/readyz").status_code == 200
                    answer = b""
                    slow.settimeout(0.1)
                    ends = time.monotonic() + 20
                    while b"body_timeout" not in answer and time.monotonic() < ends:
                        with contextlib.suppress(OSError):  # it may be closed already
                            slow.sendall(drip)
                        with contextlib.suppress(TimeoutError):
                            answer += slow.recv(4096)
                    assert answer.startswith(b"HTTP/1.1 408 ")
                    files = {"image": reference_png}
                    assert client.post("/v1/subjects/preview", files=files).status_code == 200


@pytest.mark.parametrize(
    "boundary", [None, "", "c", "b" * 30_000], ids=["none", "empty", "another", "long"]
)
def test_a_form_without_its_boundary_is_refused(
    post: Post, part_of: Part, form_of: Form, check_refusal: Check, boundary: str | None
) -> None:
    _, body = form_of(part_of("image", b"x", "x.png"))
    kind = "multipart/form-data" + ("" if boundary is None else f"; boundary={boundary}")
    check_refusal(post((kind, body)), 400, "invalid_form", None)


def test_a_head_of_a_megabyte_is_refused(server: Any, send_raw: Callable[..., Any]) -> None:
    head = "POST /v1/subjects HTTP/1.1\r\nContent-Type: multipart/form-data; boundary="
    assert send_raw(server, head + "b" * (1 << 20)).status in (400, 431)


@pytest.mark.parametrize(
    "kind",
    ["fields", "files", "large header", "headers", "large field", "no name", "no end", "preamble"],
)
def test_a_form_that_is_hard_to_read_is_refused_at_once(
    server: Any,
    post: Post,
    part_of: Part,
    form_of: Form,
    check_refusal: Check,
    usage_of: Callable[[Any], Any],
    kind: str,
) -> None:
    image = part_of("image", b"x", "x.png")
    parts = {
        "fields": [part_of(f"f{n}", b"x") for n in range(10_000)],
        "files": [part_of("image[]", b"x", f"f{n}") for n in range(10_000)],
        "large header": [part_of("model", b"x", head=b"X-A: " + b"a" * (1 << 20) + b"\r\n"), image],
        "headers": [part_of("model", head=b"".join(b"X-%d: a\r\n" % n for n in range(10_000)))],
        "large field": [part_of("model", b"a" * (2 << 20)), image],
        "no name": [b'Content-Disposition: form-data; filename="x"\r\n\r\nx'],
        "no end": [image],
        "preamble": [image],
    }
    form = form_of(*parts[kind], is_whole=kind != "no end")
    if kind == "preamble":
        form = form[0], b"x\r\n" * (1 << 20) + form[1]
    usage = usage_of(server)
    before = usage.cpu_s()
    check_refusal(post(form), 400, "invalid_form", None)
    assert usage.cpu_s() - before < 1.0


@pytest.mark.parametrize("filler", [b"\r\n--", b"\r", b"\r\n--b\r", b"--b--"])
def test_an_image_full_of_boundaries_costs_no_more_than_its_size(
    server: Any,
    post: Post,
    part_of: Part,
    form_of: Form,
    usage_of: Callable[[Any], Any],
    filler: bytes,
) -> None:
    usage, taken = usage_of(server), []
    for size in (1 << 20, 4 << 20):
        form = form_of(part_of("image", filler * (size // len(filler)), "x.png"))
        before = usage.cpu_s()
        assert post(form).status_code == 400
        taken.append(usage.cpu_s() - before)
    # Four times the size takes four times as long, on any machine; sixteen were it by the square.
    assert taken[1] < 8 * taken[0] + 0.3, taken


@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "punycode", "undefined", "idna", "x" * 300])
def test_a_form_in_another_encoding_is_415(
    post: Post, part_of: Part, form_of: Form, check_refusal: Check, charset: str
) -> None:
    kind, body = form_of(part_of("image", b"x", "x.png"), part_of("model", "é".encode()))
    answer = post((f"{kind}; charset={charset}", body))
    check_refusal(answer, 415, "unsupported_media_type")


def test_a_form_may_say_that_it_is_in_utf_8(
    post: Post, part_of: Part, form_of: Form, reference_png: bytes
) -> None:
    kind, body = form_of(part_of("image", reference_png, "x.png"))
    assert post((f'{kind}; charset="UTF-8"', body)).status_code == 200


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("prompt twice", "invalid_value"),
        ("file as a field", "unknown_field"),
        ("field as a file", "unknown_field"),
        ("empty file", "invalid_image"),
        ("control characters", "unknown_field"),
        ("NUL", "unknown_field"),
    ],
)
def test_parts_that_are_not_what_they_should_be_are_refused(
    post: Post,
    part_of: Part,
    form_of: Form,
    check_refusal: Check,
    reference_png: bytes,
    name: str,
    code: str,
) -> None:
    image, model = part_of("image", reference_png, "x.png"), part_of("model", b"tiny_bundle")
    parts = {
        "prompt twice": [model, model, image],
        "file as a field": [part_of("image", b"text")],
        "field as a file": [part_of("model", b"tiny_bundle", "x"), image],
        "empty file": [part_of("image", b"", "x.png")],
        "control characters": [part_of(b"a\x1b[31m\xffb", b"x", "x"), image],
        "NUL": [part_of(b"a\0b", b"x"), image],
    }
    error = check_refusal(post(form_of(*parts[name])), 400, code)
    assert error["message"].isprintable()
    assert error["param"].isprintable()


@pytest.mark.parametrize(
    "filename",
    [
        b"../../x.png",
        b"/etc/passwd",
        b"C:\\CON",
        b"a\0b",
        b"\xff\xfe",
        b"\xe2\x80\xaegnp.exe",
        b"x" * 3900,
        b"",
    ],
)
def test_a_name_of_a_file_names_nothing(
    post: Post, part_of: Part, form_of: Form, reference_png: bytes, filename: bytes
) -> None:
    answer = post(form_of(part_of("image", reference_png, filename)))
    assert answer.status_code == 200, answer.text
    assert "passwd" not in answer.text


def test_no_route_takes_another_body_than_its_own(
    client: httpx.Client, check_refusal: Check
) -> None:
    text = json.dumps({"prompt": "a dog", "reference_prompt": "a dog"})
    for path in ("/v1/subjects", "/v1/subjects/preview"):
        answer = client.post(path, content=text, headers=JSON)
        check_refusal(answer, 415, "unsupported_media_type")
        answer = client.post(path, data={"reference_prompt": "a dog"})
        check_refusal(answer, 415, "unsupported_media_type")
