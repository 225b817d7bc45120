"""What the browser of an allowed page of another site must be told before that page may read.

There are no cookies here, so there is nothing to say of credentials.
"""

from __future__ import annotations

from bootpig_rt.server.guard.asgi import Message, Scope, Send, header_values

_ALLOWED_METHODS = "GET, POST, DELETE"
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Request-Id"
_EXPOSED_HEADERS = b"X-Request-Id, Retry-After, X-Reference-Passes, X-Subject-Id, X-Flagged"
_PREFLIGHT_AGE_S = 600


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a page may send."""
    asks = bool(header_values(scope, b"access-control-request-method"))
    return scope["type"] == "http" and scope["method"] == "OPTIONS" and asks


async def answer_preflight(send: Send, origin: str) -> None:
    """Say to a page of `origin` what the API takes."""
    headers = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": _ALLOWED_METHODS,
        "access-control-allow-headers": _ALLOWED_HEADERS,
        "access-control-max-age": str(_PREFLIGHT_AGE_S),
        "vary": "Origin",
    }
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": pairs})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def with_cors(send: Send, origin: str) -> Send:
    """A `send` that lets a page of `origin` read the answer."""
    added = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED_HEADERS),
        (b"vary", b"Origin"),
    ]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_with_cors
