"""Connections of uvicorn: so many at most, and none whose client is too slow.

A client that sends its headers a byte at a time would hold a connection for ever, before any
middleware sees a request; so would one that asks and does not read the answer. The size of headers
is bounded by h11 (`h11_max_incomplete_event_size`) and not by httptools, so it is h11's protocol.

Where there are too many, the one that has been idle longest gives way to a new one, so that a crowd
of idle clients keeps nobody out. Where all are being answered, `capacity.py` refuses what comes on
a new one, unless it is a probe.
"""

from __future__ import annotations

import asyncio
import itertools
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bootpig_rt.server.guard.capacity import RESERVE, over_capacity
from bootpig_rt.server.guard.headers import FIXED, new_request_id
from bootpig_rt.server.guard.refuse import error_body

MIN_PROGRESS_BYTES = 16 << 10

_TURNS = itertools.count()


def http_protocol(
    *, header_deadline_s: float, stall_s: float, max_connections: int
) -> type[H11Protocol]:
    """A class for uvicorn's `Config(http=...)`.

    Args:
        header_deadline_s: From the first byte of a request, or the opening of a connection, to the
            last of its headers. However it drips, the connection is closed then.
        stall_s: While bytes wait to be taken, at least `MIN_PROGRESS_BYTES` of them must be in this
            time. Checked so often, so a client is cut off after once to twice as long.
        max_connections: That are open at once, and `RESERVE` more for a moment.
    """
    settings = {
        "header_deadline_s": header_deadline_s,
        "stall_s": stall_s,
        "max_connections": max_connections,
    }
    return type("Protocol", (_Protocol,), settings)


class _Protocol(H11Protocol):
    header_deadline_s: float
    stall_s: float
    max_connections: int
    _idle_turn = 0  # not a time: clocks may stand still for a millisecond
    _is_over = False
    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _num_waiting_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_turn = next(_TURNS)
        if len(self.connections) > self.max_connections:
            self._make_room()
        self._watch()
        self._stall_timer = self.loop.call_later(self.stall_s, self._check_stall)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def on_response_complete(self) -> None:
        self._idle_turn = next(_TURNS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; with our error body, which uvicorn's is not."""
        self._answer_and_close(400, "invalid_request", "this is no valid HTTP request")

    def _watch(self) -> None:
        """Set the timer while a request is wanted, and only then."""
        if self._is_answering or self.transport.is_closing():
            self._stop_watching()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_deadline_s, self._expire)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _make_room(self) -> None:
        """Close the connection that has been idle longest, or be one over the limit."""
        others = [one for one in self.connections if isinstance(one, _Protocol) and one is not self]
        idle = [one for one in others if not one._is_answering]
        if idle:
            min(idle, key=lambda one: one._idle_turn)._give_way()
            return
        self._is_over = True
        self.app = over_capacity(self.app)
        over = [one for one in others if one._is_over]
        if len(over) >= RESERVE:  # their clients do not take what they were told
            oldest = min(over, key=lambda one: one._idle_turn)
            self.connections.discard(oldest)  # at once, so that the next one finds another
            oldest.transport.abort()

    def _give_way(self) -> None:
        self.connections.discard(self)  # at once: closing may have to wait for the client
        self._stop_watching()
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _check_stall(self) -> None:
        """Cut the client off if it took too little since the last time."""
        num_bytes = self.transport.get_write_buffer_size()
        # Only while nothing is added can the numbers be compared.
        is_compared = self.flow.write_paused or self.transport.is_closing()
        before = self._num_waiting_bytes
        if is_compared and before and num_bytes > max(0, before - MIN_PROGRESS_BYTES):
            self.transport.abort()
            return
        self._num_waiting_bytes = num_bytes if is_compared else None
        self._stall_timer = self.loop.call_later(self.stall_s, self._check_stall)

    def _expire(self) -> None:
        self._header_timer = None
        has_begun = bool(self.conn.trailing_data[0])
        if has_begun:
            message = f"the headers were not complete after {self.header_deadline_s:g} s"
            self._answer_and_close(408, "header_timeout", message)
        elif not self.transport.is_closing():
            self.transport.close()

    def _answer_and_close(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            body = json.dumps(error_body(status, code, message)).encode()
            headers = {
                **FIXED,
                b"cache-control": b"no-store",
                b"connection": b"close",
                b"content-length": str(len(body)).encode(),
                b"content-type": b"application/json",
                b"x-request-id": new_request_id().encode(),
            }
            events = (
                h11.Response(status_code=status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
            if self.cycle is not None:  # the app was answered for: what it says now is dropped
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        self.transport.close()
