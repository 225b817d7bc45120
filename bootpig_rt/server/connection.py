"""GuardedConnection: a connection that is closed if the head of its request does not come in time.

Uvicorn waits for ever for the end of a request's headers, so that a client who sends a byte a
minute keeps a connection as long as it likes. Bodies are the guards' business.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request, or from connecting, to the end of its headers."""


class GuardedConnection(H11Protocol):
    """One connection of a client."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected: its first request is expected."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        if self._is_between_requests() and self._head_timer is None:
            self._expect_head()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_expecting()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
