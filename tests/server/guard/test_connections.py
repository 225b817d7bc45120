"""Connections on which no whole request comes, or no answer is taken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from bootpig_rt.server.guard.connections import MIN_PROGRESS_BYTES, http_protocol


@pytest.fixture(scope="module")
def hasty(serve: Callable[..., Any]) -> Any:
    """A server that waits little for headers, and for those who do not read."""
    return serve(header_deadline_s=0.5, stall_s=0.3)


def received(connection: Any) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    try:
        while more := connection.recv(10_000):
            found += more
    except ConnectionResetError:
        pass
    return found


def test_headers_that_drip_are_cut_off(hasty: Any) -> None:
    with hasty.connection() as connection:
        connection.sendall(b"GET /who HTTP/1.1\r\nHost: localhost\r\n")
        connection.settimeout(0.02)
        for number in range(1000):
            try:
                first = connection.recv(1)
                break
            except TimeoutError:
                connection.sendall(b"X-%d: y\r\n" % number)
        connection.settimeout(20)
        assert (first + received(connection)).startswith(b"HTTP/1.1 408 ")


def test_a_connection_without_a_request_is_closed(hasty: Any) -> None:
    with hasty.connection() as connection:
        assert received(connection) == b""


def test_an_answer_may_take_longer_than_headers_may(hasty: Any) -> None:
    with hasty.connection() as connection, hasty.connection() as idle:
        hasty.send(connection, "GET", "/first")
        assert received(idle) == b""  # so the time has passed
        with hasty.connection() as other:
            hasty.send(other, "GET", "/second")
            assert hasty.read(other).status == 200
        assert hasty.read(connection).body == b"first,second"
        hasty.send(connection, "GET", "/who")
        assert hasty.read(connection).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /who HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000,
        b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n",
        b"GET /who HTTP/1.1\r\n" + b"X-Y: z\r\n" * 100_000,
    ],
)
def test_headers_of_a_megabyte_are_refused(live: Any, head: bytes) -> None:
    with live.connection() as connection:
        try:
            connection.sendall(head)
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = received(connection)
    assert found == b"" or found.startswith(b"HTTP/1.1 400 ")
    assert live.ask("GET", "/who").status == 200


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"GET\r\n\r\n"])
def test_what_is_no_http_gets_an_error_body(live: Any, head: bytes) -> None:
    with live.connection() as connection:
        connection.sendall(head + b"\r\n\r\n")
        found = live.read(connection)
    assert (found.status, found.code) == (400, "invalid_request")


def test_nonsense_in_a_body_is_answered_once_and_is_no_fault_of_the_app(
    live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with live.connection() as connection:
        connection.sendall(head + b"nonsense\r\n")  # at once: the app has not begun
        found = live.read(connection)
        assert (found.status, found.code) == (400, "invalid_request")
        assert received(connection) == b""
    assert live.ask("GET", "/who").status == 200
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_nonsense_after_an_answer_began_ends_the_connection_alone(live: Any) -> None:
    with live.connection() as connection:
        live.send(connection, "POST", "/begun", Transfer_Encoding="chunked")
        connection.sendall(b"1\r\nx\r\n")
        while b"part" not in connection.recv(1000):
            pass
        connection.sendall(b"nonsense\r\n")
        assert b"HTTP/1.1 400" not in received(connection)
    assert live.ask("GET", "/who").status == 200


def test_a_client_that_does_not_read_its_answer_is_cut_off(hasty: Any) -> None:
    """Else the app would wait for ever to send the rest."""
    with hasty.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hasty.send(connection, "GET", "/flood")
        assert hasty.ask("GET", "/is-cut").status == 200


class Transport:
    """What the protocol asks of a connection, with numbers that a test sets."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.is_closed = False
        self.is_aborted = False

    def get_extra_info(self, name: str) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.num_bytes

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(
    ("waiting", "how", "is_aborted"),
    [
        ([100_000, 100_000], "paused", True),
        ([100_000, 99_000], "paused", True),
        ([100_000, 100_000 - MIN_PROGRESS_BYTES, 50_000], "paused", False),
        ([500_000, 300_000, 100_000, 0], "paused", False),
        ([5_000, 4_000], "closing", True),
        ([5_000, 0], "closing", False),
        ([5_000, 5_000], "open", False),  # new bytes may have come in the place of those taken
    ],
)
def test_only_a_client_that_takes_too_little_is_cut_off(
    waiting: list[int], how: str, is_aborted: bool
) -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    async def scenario() -> bool:
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
        kind = http_protocol(header_deadline_s=10, stall_s=10, max_connections=8)
        protocol: Any = kind(config=config, server_state=ServerState(), app_state={})
        transport = Transport()
        protocol.connection_made(transport)
        protocol.flow.write_paused = how == "paused"
        transport.is_closed = how == "closing"
        for transport.num_bytes in waiting:
            assert not transport.is_aborted
            protocol._check_stall()
        return transport.is_aborted

    assert asyncio.run(scenario()) == is_aborted


@pytest.fixture
def crowded(serve: Callable[..., Any]) -> Any:
    """A server for three connections, and `/who` for a probe."""
    return serve(max_connections=3)


def test_the_connection_that_has_been_idle_longest_gives_way(crowded: Any) -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(crowded.connection())
        kept = []
        for _ in range(2):
            kept.append(stack.enter_context(crowded.connection()))
            crowded.send(kept[-1], "GET", "/headers")
            assert crowded.read(kept[-1]).status == 200
        half = stack.enter_context(crowded.connection())
        half.sendall(b"GET /who HTTP/1.1\r\nHost:")
        assert received(silent) == b""
        late = stack.enter_context(crowded.connection())
        crowded.send(late, "GET", "/headers")
        assert crowded.read(late).status == 200
        assert received(kept[0]) == b""
        crowded.send(kept[1], "GET", "/headers")
        assert crowded.read(kept[1]).status == 200


def test_where_all_connections_are_being_answered_only_probes_are_on_a_new_one(
    crowded: Any,
) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(crowded.connection()) for _ in range(3)]
        for one in busy:
            crowded.send(one, "GET", "/until-gone")
            assert one.recv(10_000)
        for _ in range(2):
            refused = crowded.ask("GET", "/headers")
            assert (refused.status, refused.code) == (503, "too_many_connections")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
            assert crowded.ask("GET", "/who").status == 200
        with crowded.connection() as fourth:
            crowded.send(fourth, "POST", "/read", Content_Length=3)
            fourth.sendall(b"abc")
            assert crowded.read(fourth).code == "too_many_connections"
            assert crowded.is_closed(fourth)
        busy[0].close()
        crowded.eventually(lambda: crowded.ask("GET", "/headers"), 200)
    assert crowded.seen[-1].refusal is None


def test_connections_over_the_limit_are_bounded_too(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootpig_rt.server.guard.connections.RESERVE", 2)
    server = serve(max_connections=1, always=["/until-gone"])
    with ExitStack() as stack:
        begun = []
        for _ in range(4):  # the first has a place, and of the others two may be there
            begun.append(stack.enter_context(server.connection()))
            server.send(begun[-1], "GET", "/until-gone")
            assert b"begun" in begun[-1].recv(10_000)
        assert server.is_closed(begun[1])
        begun[2].settimeout(0.1)
        with pytest.raises(TimeoutError):
            begun[2].recv(1)
