"""A refusal, as OpenAI's error body. Texts are fixed and tell no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bootpig_rt.server.guard.asgi import Receive, Scope, Send, request_state

_POLICY_VIOLATION = 1008


def error_body(
    status: int, code: str, message: str, *, param: str | None = None
) -> dict[str, dict[str, Any]]:
    """The body of an error answer, as OpenAI's clients read it.

    Args:
        status: Of the answer; decides the `type`.
        code: For programs, such as `body_too_large`.
        message: For people: what was wrong and what to do.
        param: The field at fault, if it is one.
    """
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request with an error, and a websocket by closing it.

    The body of the request may be unread: `EarlyAnswers` sees to that. Who counts and logs finds
    the code in `scope["state"]["refusal"]`.

    Args:
        scope: Of the request.
        receive: Of the request; an ASGI app of its own would need it, this one does not read.
        send: Of the request.
        status: 400 to 599.
        code: As for `error_body`.
        message: As for `error_body`.
        headers: More of them, such as `Retry-After`.
    """
    request_state(scope)["refusal"] = code
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": code})
        return
    body = json.dumps(error_body(status, code, message)).encode()
    pairs = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in pairs.items()],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
