"""EventStream: an answer of server-sent events that notices when its reader is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SendEvent: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Sends one event: its name, and its data without `type`."""

ALIVE_EVERY_S = 10.0
"""A comment is sent as often, so that nobody between takes the connection for dead."""


class EventStream(Response):
    """Runs a producer of events until it ends or its reader leaves.

    Args:
        produce: Sends the events.
        close: Called when all is over: what is not produced by then is wanted no more.
        most_s: The longest that it may take, a slow reader included.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        produce: Callable[[SendEvent], Awaitable[None]],
        close: Callable[[], Any],
        most_s: float,
    ) -> None:
        """Nothing is sent yet."""
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._produce, self._close, self._most_s = produce, close, most_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        sending = asyncio.Lock()

        async def write(text: str) -> None:
            async with sending:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        async def send_event(name: str, data: dict[str, Any]) -> None:
            text = json.dumps({"type": name} | data, ensure_ascii=False, separators=(",", ":"))
            await write(f"event: {name}\ndata: {text}\n\n")

        async def stay_alive() -> None:
            while True:
                await asyncio.sleep(ALIVE_EVERY_S)
                await write(": alive\n\n")

        tasks: list[asyncio.Future[None]] = []
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            producing = asyncio.ensure_future(self._produce(send_event))
            watching = asyncio.ensure_future(_gone(receive))
            tasks = [producing, watching, asyncio.ensure_future(stay_alive())]
            await asyncio.wait(tasks[:2], timeout=self._most_s, return_when=asyncio.FIRST_COMPLETED)
            if producing.done():
                producing.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task  # what it failed with is told, or nobody is left to be told


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
