"""The words of ASGI 3, and how to read a request's headers. Nothing here waits or answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing on the server."""


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Every value of a header, in order; `name` in lower case."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def has_body(scope: Scope) -> bool:
    """Whether the headers announce a body."""
    lengths = header_values(scope, b"content-length")
    return any(length != "0" for length in lengths) or bool(
        header_values(scope, b"transfer-encoding")
    )


def request_state(scope: Scope) -> dict[str, Any]:
    """What middlewares leave for those within: `scope["state"]`, made where the server does not."""
    state: dict[str, Any] = scope.setdefault("state", {})
    return state


def route_path(scope: Scope) -> str:
    """The path within the app, where a proxy serves it below another."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(root + "/") else path
