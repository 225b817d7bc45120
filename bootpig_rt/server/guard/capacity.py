"""Requests on connections over the limit: probes are answered, others told why they are not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bootpig_rt.server.guard.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    request_state,
    route_path,
)
from bootpig_rt.server.guard.refuse import refuse

RESERVE = 64
"""Connections over the limit, on which probes and refusals are answered."""

_KEY = "is_over_capacity"
_RETRY_AFTER_S = 1


def over_capacity(app: Any) -> App:
    """The same application, for a connection over the limit: it is closed after one answer.

    Args:
        app: An ASGI application with a `CapacityGuard` in it.
    """

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        request_state(scope)[_KEY] = True
        await app(scope, receive, send_and_close)

    return marked


class CapacityGuard:
    """Middleware: 503 for what comes on a connection over the limit, unless it is a probe.

    Args:
        app: What answers.
        always: Paths that are answered on every connection.
    """

    def __init__(self, app: App, *, always: Collection[str]) -> None:
        self._app, self._always = app, frozenset(always)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_over = scope["type"] == "http" and request_state(scope).get(_KEY, False)
        if is_over and route_path(scope) not in self._always:
            message = "too many connections are being answered; try again"
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            await refuse(scope, receive, send, 503, "too_many_connections", message, headers)
            return
        await self._app(scope, receive, send)
