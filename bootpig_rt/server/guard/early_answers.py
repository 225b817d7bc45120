"""What to do when an answer is ready before the request's body has been read.

The connection cannot be used again: what comes next on it is the rest of that body, for which a
server would otherwise wait without end. And if it were closed at once, the system would answer the
bytes still coming with a reset, on which some clients lose the answer. So the answer says
`Connection: close`, is sent in full, and what still comes is thrown away for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from bootpig_rt.server.guard.asgi import App, Message, Receive, Scope, Send, has_body

LINGER_S = 1.0
LINGER_BYTES = 16 << 20
"""For how long, and how much, is thrown away."""


class EarlyAnswers:
    """Middleware, the outermost: ends connections whose body nobody read."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Reading(receive)

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.is_over:
                body.must_close = True
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            elif (
                message["type"] == "http.response.body"
                and not message.get("more_body", False)
                and body.must_close
                and not body.is_over
            ):
                body.is_left = True
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, body.receive, send_and_close)
        if body.is_left:  # the app is done, and whoever measures its time has done so
            await body.throw_away()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass
class _Reading:
    """A `receive` that knows when the body is over."""

    raw_receive: Receive
    is_over: bool = False
    must_close: bool = False
    is_left: bool = False

    async def receive(self) -> Message:
        message = await self.raw_receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.is_over = True
        return message

    async def throw_away(self) -> None:
        """Read on until the body ends, the client leaves or it is enough."""
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self.is_over and num_bytes < LINGER_BYTES:
                    num_bytes += len((await self.receive()).get("body", b""))
