"""Headers that every answer has: what a browser may do with it, and the id of its request."""

from __future__ import annotations

import logging
import re
import secrets

from bootpig_rt.server.guard.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    header_values,
    request_state,
)
from bootpig_rt.server.guard.refuse import refuse

logger = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)

PERMISSIONS_POLICY = ", ".join(
    f"{name}=()"
    for name in (
        *("accelerometer", "browsing-topics", "camera", "display-capture", "geolocation"),
        *("gyroscope", "magnetometer", "microphone", "midi", "payment", "serial", "usb"),
    )
)

FIXED = {
    b"content-security-policy": CONTENT_SECURITY_POLICY.encode(),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": PERMISSIONS_POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""On every answer, whatever the app says."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_request_id() -> str:
    """An id that nobody can guess: `req_` and 24 hexadecimal digits."""
    return f"req_{secrets.token_hex(12)}"


class SecurityHeaders:
    """Middleware: headers and a request id on every answer.

    The headers are those of `FIXED`, and `Cache-Control: no-store` where the app says nothing about
    caching. The id is the client's, if it is 1 to 64 letters, digits, `_` and `-`, or a new one;
    those within find it in `scope["state"]["request_id"]`. What fails within before it has answered
    is logged with its id, and answered with one fixed text.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or new_request_id()
        request_state(scope)["request_id"] = request_id
        fixed = {**FIXED, b"x-request-id": request_id.encode()}
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                given = [
                    pair for pair in message.get("headers", ()) if pair[0].lower() not in fixed
                ]
                if all(name.lower() != b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*given, *fixed.items()]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # whatever it was, its text is for the log and not for the client
            if is_started or scope["type"] == "websocket":
                raise
            logger.exception("request %s failed", request_id)
            message = f"the server failed at this request; its id is {request_id}"
            await refuse(scope, receive, send_with_headers, 500, "internal_error", message)


def _given_id(scope: Scope) -> str | None:
    values = header_values(scope, b"x-request-id")
    is_good = len(values) == 1 and _REQUEST_ID.fullmatch(values[0]) is not None
    return values[0] if is_good else None
