"""Requests to a service as bytes on a socket: bodies and heads that are right, wrong, or cut.

The first line of an input is JSON that says how the rest is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal, TypeAlias

import h11

from tests.fuzz import bodies, corpus
from tests.fuzz.bodies import SUBJECT_ID, Body
from tests.fuzz.byte_edits import edited, few
from tests.fuzz.trees import TEXTS, json_bytes, value

TOKEN = "bprt_" + "f" * 43
"""Of the only tenant."""

_MAX_HEAD_BYTES = 32 << 10  # as the service has it

Ending: TypeAlias = Literal["wait", "leave", "leave late"]
"""A client waits for its answer, leaves when all is sent, or some milliseconds later."""


@dataclass(frozen=True)
class Sending:
    """How a request is sent.

    Attributes:
        cuts: Places in it between which a client waits a moment.
        ends: What the client does then.
        is_drawn: A subject that was taken is looked at, drawn and deleted.
    """

    cuts: list[int]
    ends: Ending
    is_drawn: bool = False


def request_input(random: Random, subjects: Sequence[bytes]) -> bytes:
    """One request, after a line that says how it is sent.

    Args:
        random: Draws it.
        subjects: Files of subjects of the service's pair.
    """
    is_file = random.random() < 0.15
    if is_file:
        data = _subject_file(random, subjects)
    else:
        data = random.choice(_MAKERS)(random)
    ends: Ending = "wait"
    if random.random() < 0.08:
        data = data[: random.randrange(1, len(data))]
        ends = "leave"
    elif random.random() < 0.06:
        ends = random.choice(("leave", "leave late"))
    count = random.choice((0, 0, 0, 1, 3))
    cuts = sorted(random.randrange(len(data)) for _ in range(count))
    sending = Sending(cuts, ends, is_drawn=is_file and random.random() < 0.7)
    return json.dumps(asdict(sending)).encode() + b"\n" + data


def parts_of(data: bytes) -> tuple[Sending, bytes]:
    """How an input is sent, and what."""
    line, _, request = data.partition(b"\n")
    return Sending(**json.loads(line)), request


def is_whole(request: bytes) -> bool:
    """Whether these bytes are a request of HTTP to its end, to which an answer is owed."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
    connection.receive_data(request)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                return True
            if event in (h11.NEED_DATA, h11.PAUSED):
                return False
    except h11.RemoteProtocolError:
        return False


def _message(random: Random, method: str, path: str, body: Body | None = None) -> bytes:
    headers = [("Host", "127.0.0.1"), ("Authorization", f"Bearer {TOKEN}")]
    if body is not None:
        headers += [("Content-Type", body.content_type), ("Content-Length", str(len(body.data)))]
    if random.random() < 0.15:
        headers.append(_odd_header(random))
    if random.random() < 0.05:
        del headers[random.randrange(len(headers))]
    if random.random() < 0.05:
        random.shuffle(headers)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers)]
    head = "\r\n".join(lines).encode("utf-8", "surrogatepass")
    if random.random() < 0.06:
        head = edited(random, head, (b"\r\n", b"\r\n ", b": ", b"HTTP/1.0", b"\0"))
    data = b"" if body is None else body.data
    if body is not None and random.random() < 0.05:
        head = head.replace(b"Content-Length: %d" % len(data), b"Transfer-Encoding: chunked")
        data = _chunked(random, data)
    return head + b"\r\n\r\n" + data


def _chunked(random: Random, data: bytes) -> bytes:
    step = random.choice((1000, 65_536))
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    out = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return edited(random, out) + b"0\r\n\r\n" if random.random() < 0.4 else out


def _odd_header(random: Random) -> tuple[str, str]:
    lone = random.choice(TEXTS).replace("\r", "").replace("\n", "")[:9000]
    return random.choice(
        (
            ("X-Request-Id", random.choice(("a", "a" * 65, "é", "job1", lone))),
            ("Origin", random.choice(("null", "http://127.0.0.1", "https://example.org", lone))),
            ("Host", random.choice(("example.org", "127.0.0.1:1", "[::1]", "", lone))),
            ("Authorization", random.choice(("", "Bearer", "Bearer x", "Basic eDp5", lone))),
            ("Content-Length", random.choice(("0", "-1", "1e3", "99999999999", "5, 5"))),
            ("Content-Encoding", random.choice(("gzip", "identity", lone))),
            ("Transfer-Encoding", random.choice(("chunked", "gzip, chunked", "identity"))),
            ("Accept", random.choice(("image/png", "text/event-stream", lone))),
            ("Connection", random.choice(("close", "keep-alive", "upgrade"))),
            ("Upgrade", random.choice(("websocket", "h2c"))),
            ("Expect", random.choice(("100-continue", "200-ok"))),
            ("Sec-Fetch-Site", random.choice(("cross-site", "none"))),
            ("X-Forwarded-For", lone),
            ("Range", "bytes=0-1"),
            ("Access-Control-Request-Method", "POST"),
            ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),
            ("A" * random.choice((1, 300)), lone),
        )
    )


def _picture(random: Random) -> bytes:
    whole = corpus.pictures()
    return random.choice(whole) if random.random() < 0.4 else corpus.picture(random, whole)


def _pictures(random: Random) -> list[tuple[str, bytes]]:
    name = "image[]" if random.random() < 0.9 else random.choice(("image", "images", "file", ""))
    return [(name, _picture(random)) for _ in range(few(random, 5))]


def _edit(random: Random) -> bytes:
    if random.random() < 0.4:
        body = bodies.json_body(random, _picture, is_edit=True)
    else:
        body = bodies.form_body(random, bodies.fields(random), _pictures(random))
    return _message(random, "POST", "/v1/images/edits", body)


def _generation(random: Random) -> bytes:
    body = bodies.json_body(random, _picture, is_edit=False)
    return _message(random, "POST", "/v1/images/generations", body)


def _subject(random: Random) -> bytes:
    fields = {"reference_prompt": "a photo of a dog"}
    body = bodies.form_body(random, fields, _pictures(random))
    return _message(random, "POST", "/v1/subjects", body)


def _subject_file(random: Random, subjects: Sequence[bytes]) -> bytes:
    whole = (*subjects, *subjects, *subjects, *corpus.subject_files())
    file = random.choice(subjects)
    if random.random() < 0.9:
        file = corpus.subject_file(random, whole)
    body = bodies.form_body(random, {"ttl_s": 60}, [("file", file)])
    return _message(random, "POST", "/v1/subjects", body)


def _preview(random: Random) -> bytes:
    body = bodies.form_body(random, {}, _pictures(random))
    return _message(random, "POST", "/v1/subjects/preview", body)


def _ask(random: Random) -> bytes:
    """A request without a body, to any route, or to none."""
    paths: tuple[str, ...] = (
        "/v1/models",
        "/v1/models/pair",
        "/v1/limits",
        "/v1/subjects",
        "/livez",
        "/readyz",
    )
    paths += ("/metrics", "/openapi.json", "/", "/page/js/main.js", f"/v1/subjects/{SUBJECT_ID}")
    paths += (f"/v1/subjects/{SUBJECT_ID}/preview", f"/v1/subjects/{SUBJECT_ID}/file")
    paths += ("/v1/jobs/job1", "/v1/jobs/job1/cancel", "/v1/images/edits", "/v1/admin/reload")
    path = random.choice(paths)
    if random.random() < 0.5:
        odd = random.choice(
            ("/", "//", "/..%2f..%2fetc", "%00", "%ff%fe", ";a", "/%2e%2e", "?", "#")
        )
        queries: tuple[str, ...] = (
            "?limit=5",
            "?limit=0",
            "?limit=1e9",
            f"?limit={'9' * 5000}",
            "?limit=%ff",
        )
        queries += ("?after=x", f"?after={SUBJECT_ID}", "?model=x&model=y", "?after=%00", "?limit=")
        path += random.choice((odd, *queries))
    method = random.choice(("GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "X"))
    if method == "DELETE" or path.startswith("/v1/admin"):
        path = path.replace(SUBJECT_ID, "sub_" + "0" * 24)  # the others may still need it
    return _message(random, method, path)


def _reload(random: Random) -> bytes:
    """Never with a model that there is: loading it takes long and tells nothing of inputs."""
    tree = {"model": random.choice(TEXTS), "more": value(random)}
    body = Body("application/json", json_bytes(random, tree))
    return _message(random, "POST", "/v1/admin/reload", body)


def _noise(random: Random) -> bytes:
    """What is hardly HTTP."""
    whole = random.choice((_ask, _generation))(random)
    return random.choice(
        (
            edited(random, whole),
            random.randbytes(random.choice((1, 40, 5000))) + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            whole + whole,
        )
    )


_MAKERS: tuple[Callable[[Random], bytes], ...] = (
    *(_edit, _edit, _edit, _generation, _generation, _subject),
    *(_preview, _preview, _preview, _ask, _ask, _reload, _noise),
)
