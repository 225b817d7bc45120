"""Bodies that are too large, too slow, too many, or not what their headers say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.body import BodyGuard, BodyLimits


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
def connect(live: Any) -> Iterator[Any]:
    """Opens connections that stay open until the end of the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(live.connection())


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_body_within_the_limit_arrives_whole(live: Any, size: int) -> None:
    assert live.ask("POST", "/read", b"x" * size).facts == {"bytes": size}


def test_a_chunked_body_within_the_limit_arrives_whole(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/read", Transfer_Encoding="chunked")
    connection.sendall(chunk(b"x" * 400) + chunk(b"y" * 600) + chunk(b""))
    assert live.read(connection).facts == {"bytes": 1000}
    live.send(connection, "GET", "/who")  # the connection is good for more
    assert live.read(connection).status == 200


@pytest.mark.parametrize("length", ["1001", "9" * 15])
def test_a_body_over_the_limit_is_refused_before_it_is_sent(
    live: Any, connect: Any, length: str
) -> None:
    connection = connect()
    live.send(connection, "POST", "/read", Content_Length=length, Expect="100-continue")
    found = live.read(connection)
    assert (found.status, found.code) == (413, "body_too_large")
    assert "1000 bytes" in found.facts["error"]["message"]
    assert found.headers["connection"] == "close"


def test_a_client_that_sends_a_large_body_all_the_same_gets_its_answer(live: Any) -> None:
    found = live.ask("POST", "/read", b"x" * 3_000_000)
    assert (found.status, found.code) == (413, "body_too_large")


def test_limits_are_those_of_the_longest_path_that_fits(live: Any) -> None:
    assert live.ask("POST", "/large/read", b"x" * 3_000_000).facts == {"bytes": 3_000_000}


def test_a_chunked_body_is_cut_off_at_the_limit(live: Any, connect: Any) -> None:
    """It has no end, and none is waited for."""
    connection = connect()
    live.send(connection, "POST", "/read", Transfer_Encoding="chunked")
    connection.sendall(chunk(b"x" * 600) * 2)
    found = live.read(connection)
    assert (found.status, found.code) == (413, "body_too_large")
    assert live.is_closed(connection)


def test_a_body_that_drips_is_cut_off_at_a_deadline(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/slow/read", Content_Length=1000)
    connection.settimeout(0.02)
    first = b""
    for _ in range(1000):  # a byte at a time: the deadline comes long before the end
        try:
            first = connection.recv(1)
            break
        except TimeoutError:
            connection.sendall(b"x")
    assert first == b"H"
    connection.settimeout(20)
    rest = b"" + first
    while more := connection.recv(10_000):
        rest += more
    assert rest.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in rest
    assert b"connection: close" in rest.lower()


def test_a_body_that_never_comes_is_given_up(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/slow/read", Content_Length=10)
    connection.sendall(b"nine byte")
    found = live.read(connection)
    assert (found.status, found.code) == (408, "body_timeout")
    assert live.is_closed(connection)


def leave(connection: socket.socket) -> None:
    connection.sendall(b"12345")
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    leave(connection)


def break_chunk(connection: socket.socket) -> None:
    connection.sendall(b"no hexadecimal digits\r\n")


def too_much(connection: socket.socket) -> None:
    connection.sendall(chunk(b"x" * 1001))


@pytest.mark.parametrize(
    ("headers", "harm"),
    [
        ({"Content_Length": 10}, leave),
        ({"Content_Length": 10}, reset),
        ({"Transfer_Encoding": "chunked"}, break_chunk),
        ({"Transfer_Encoding": "chunked"}, too_much),
    ],
)
@pytest.mark.parametrize("what", ["read", "stubborn", "begun"])
def test_the_one_place_is_free_after_every_fault(
    live: Any, connect: Any, headers: dict[str, Any], harm: Any, what: str
) -> None:
    connection = connect()
    live.send(connection, "POST", f"/one/{what}", **headers)
    busy = live.eventually(lambda: live.ask("POST", "/one/read", b"x"), 503)
    assert (busy.status, busy.code) == (503, "too_many_uploads")
    assert busy.headers["retry-after"] == "1"
    harm(connection)
    free = live.eventually(lambda: live.ask("POST", "/one/read", b"x"), 200)
    assert free.facts == {"bytes": 1}


def test_slow_bodies_do_not_hold_up_other_routes(live: Any, connect: Any) -> None:
    live.send(connect(), "POST", "/one/read", Content_Length=10)
    assert live.eventually(lambda: live.ask("POST", "/one/read", b"x"), 503).status == 503
    assert live.ask("POST", "/read", b"x").status == 200
    assert live.ask("GET", "/who").status == 200
    assert live.ask("POST", "/one/early").status == 200  # without a body it needs no place


def test_a_stranger_holds_no_place(locked: Any) -> None:
    with locked.connection() as connection:
        locked.send(connection, "POST", "/one/read", Content_Length=10)
        assert locked.read(connection).status == 401
        key = locked.bearer("alice")
        assert locked.ask("POST", "/one/read", b"x", Authorization=key).status == 200


def test_what_the_app_says_after_a_refusal_is_dropped(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/one/stubborn", Transfer_Encoding="chunked")
    connection.sendall(chunk(b"x" * 1001))
    received = b""
    while more := connection.recv(10_000):
        received += more
    assert received.count(b"HTTP/1.1") == 1
    assert b"413" in received.splitlines()[0]


def test_an_answer_that_began_is_the_apps_to_end(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/begun", Transfer_Encoding="chunked")
    connection.sendall(chunk(b"x" * 1001))
    found = live.read(connection)
    assert found.status == 200
    assert found.body.endswith(b"http.disconnect")
    assert live.is_closed(connection)


def test_a_connection_whose_body_nobody_read_is_closed(live: Any, connect: Any) -> None:
    """Else the rest of the body would be awaited for ever, as long as it drips."""
    connection = connect()
    live.send(connection, "POST", "/early", Transfer_Encoding="chunked")
    connection.sendall(chunk(b"x"))
    found = live.read(connection)
    assert found.status == 200
    assert found.headers["connection"] == "close"
    assert live.is_closed(connection)


def test_an_observer_sees_a_refusal_whole_though_the_client_leaves(live: Any) -> None:
    path = "/slow/observed"
    with live.connection() as connection:
        live.send(connection, "POST", path, Content_Length=5000)
        assert live.read(connection).status == 413
    (seen,) = [each for each in live.seen if each.path == path]
    assert (seen.status, seen.refusal, seen.num_disconnects) == (413, "body_too_large", 0)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_refused_and_never_unpacked(live: Any, coding: str) -> None:
    found = live.ask("POST", "/read", b"\x1f\x8b", Content_Encoding=coding)
    assert (found.status, found.code) == (415, "unsupported_media_type")
    assert "without Content-Encoding" in found.facts["error"]["message"]


def test_a_body_in_its_identity_is_read(live: Any) -> None:
    assert live.ask("POST", "/read", b"xy", Content_Encoding="Identity").facts == {"bytes": 2}


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Length": "-1"},
        {"Content_Length": "+1"},
        {"Content_Length": "1.5"},
        {"Content_Length": "0x10"},
        {"Content_Length": "1, 2"},
        {"Content_Length": "9" * 5000},
        {"Content_Length": ["1", "2"]},
        {"Content_Length": 2, "Transfer_Encoding": "chunked"},
        {"Transfer_Encoding": "gzip, chunked"},
    ],
)
def test_a_body_of_no_one_length_is_refused(live: Any, headers: dict[str, Any]) -> None:
    found = live.ask("POST", "/read", b"0\r\n\r\n", **{"Content_Length": None} | headers)
    assert found.status in (400, 413, 501)
    assert found.code in ("invalid_value", "invalid_request", "body_too_large")


def test_what_follows_a_body_is_no_part_of_it(live: Any, connect: Any) -> None:
    connection = connect()
    live.send(connection, "POST", "/read", Content_Length=2)
    connection.sendall(b"xyGET /who HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert live.read(connection).facts == {"bytes": 2}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 1, "deadline_s": 0}, "deadline_s"),
        ({"max_bytes": 1, "deadline_s": float("nan")}, "deadline_s"),
        ({"max_bytes": 1, "max_at_once": 0}, "max_at_once"),
        ({"max_bytes": 1, "max_per_tenant": 0}, "max_per_tenant"),
    ],
)
def test_limits_that_are_none_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BodyLimits(**limits)


@pytest.mark.parametrize("prefixes", [[], ["/a"], ["/", "a"]])
def test_limits_are_there_for_every_path(prefixes: list[str]) -> None:
    async def app(*_: object) -> None: ...

    with pytest.raises(ParameterError, match="begin with '/'"):
        BodyGuard(app, limits=dict.fromkeys(prefixes, BodyLimits(1)))
