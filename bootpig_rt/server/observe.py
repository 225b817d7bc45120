"""Observer: what is told of every request: counts, one access line, a span if there are traces.

It goes around everything else, so that also what a guard refuses is told.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bootpig_rt.server.metrics import OTHER, Metrics
from bootpig_rt.server.request_notes import NoteValue, RequestNotes, begin_notes

if TYPE_CHECKING:
    from bootpig_rt.server.tracing import Tracing

logger = logging.getLogger("bootpig_rt.server.access")

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked every few seconds for ever: their access lines are of level DEBUG."""

_MAX_PATH = 200

CLIENT_LEFT = 499
"""Status in logs and counts where the client went away before its answer had ended."""


class Observer:
    """An application that tells of the requests of another.

    Args:
        app: The other one, with its guards.
        metrics: Counts.
        tracing: Makes spans; None for none.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and tell of it however that ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = begin_notes(scope)
        answer = _Answer()
        span = None if self._tracing is None else self._tracing.begin(notes)
        self._metrics.request_begins()

        async def receive_and_see() -> Message:
            message = await receive()
            answer.received(message)
            return message

        async def send_and_see(message: Message) -> None:
            await send(message)
            answer.sent(message)

        try:
            await self._app(scope, receive_and_see, send_and_see)
        finally:
            took_s = time.perf_counter() - notes.began_at
            self._count(notes, answer.status, took_s)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, notes, answer.status)
            _log(notes, answer.status, took_s)

    def _count(self, notes: RequestNotes, status: int, took_s: float) -> None:
        if notes.route is not None:  # the application has so many of them and no more
            self._metrics.know_routes([notes.route])
        self._metrics.request_ends(notes.route or OTHER, notes.scope["method"], status, took_s)
        refusal = notes.scope.get("state", {}).get("refusal")
        if refusal is not None:  # of a guard, which knows no counters
            notes.fields.setdefault("error", refusal)
            self._metrics.refused(refusal)


class _Answer:
    """What was seen of an answer."""

    def __init__(self) -> None:
        self._status = 0
        self._is_whole = self._is_client_gone = False

    @property
    def status(self) -> int:
        """That the client got; 499 if it left early, 500 if the application failed early."""
        if self._is_whole:
            return self._status
        return CLIENT_LEFT if self._is_client_gone else 500

    def received(self, message: Message) -> None:
        """Something came from the client."""
        if message["type"] == "http.disconnect" and not self._is_whole:
            self._is_client_gone = True

    def sent(self, message: Message) -> None:
        """Something went to the client."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_whole = True


def _log(notes: RequestNotes, status: int, took_s: float) -> None:
    scope = notes.scope
    is_probe = notes.route in PROBES and status < 400
    level = logging.DEBUG if is_probe else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"][:_MAX_PATH],
        "route": notes.route,
        "status": status,
        "took_ms": round(1e3 * took_s, 3),
        "tenant": notes.tenant,
        **notes.fields,
        **_stages(notes),
    }
    words = scope["method"], fields["path"], status
    logger.log(level, "%s %s %d", *words, extra={"fields": fields})


def _stages(notes: RequestNotes) -> dict[str, NoteValue]:
    return {} if notes.timings is None else dict(notes.timings.to_dict())
