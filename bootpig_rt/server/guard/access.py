"""Who may call which route: a table, and the middleware that asks for a key.

What is not in the table is not there: a route that somebody adds and forgets to list is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import unquote_plus

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.asgi import (
    App,
    Receive,
    Scope,
    Send,
    header_values,
    request_state,
    route_path,
)
from bootpig_rt.server.guard.keys import TOKEN_PREFIX, KeyFile, Principal
from bootpig_rt.server.guard.refuse import refuse

Access: TypeAlias = Literal["public", "user", "admin"]

_RANKS: dict[str, int] = {"public": 0, "user": 1, "admin": 2}
_ENTRY = re.compile(r"([A-Z]+) (/\S*)")
_PART = re.compile(r"\{(\w+)(:path)?\}")
_BAD_PATH = re.compile(r"[\x00-\x1f\x7f\\]|//|/\.{1,2}(/|\Z)")
_KEY_NAMES = frozenset(
    ["accesstoken", "apikey", "authorization", "bearer", "key", "password", "secret", "token"]
)

NOBODY = Principal("", "admin")
"""Who asks on a server without keys."""


class Route(NamedTuple):
    """A line of the table.

    Attributes:
        method: `GET` stands for `HEAD` too.
        path: With `{name}` for one part and `{name:path}` for any rest, as Starlette has them.
        access: Who may call it.
        pattern: What matches `path`.
    """

    method: str
    path: str
    access: Access
    pattern: re.Pattern[str]


class RouteTable:
    """All routes of a server.

    Args:
        access_of: `{"GET /livez": "public", "GET /v1/jobs/{id}": "user", ...}`.

    Raises:
        ParameterError: An entry that cannot be read.
    """

    def __init__(self, access_of: Mapping[str, Access]) -> None:
        self.routes = tuple(_route(entry, access) for entry, access in access_of.items())

    def methods(self, path: str) -> dict[str, Access]:
        """Every method that a path takes, with the access it needs; empty for no such path.

        Where two lines match, the stricter counts, whatever their order. A line that says the path
        itself has all of its methods: `/a/new` is none of `/a/{id}`.
        """
        found: dict[str, Access] = {}
        if _BAD_PATH.search(path):  # two programs may read such a path in two ways
            return found
        matching = [route for route in self.routes if route.pattern.fullmatch(path)]
        own = {route.method for route in matching if route.path == path}
        for route in matching:
            if own and route.method not in own:
                continue
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                before = found.get(method, "public")
                found[method] = max(before, route.access, key=_RANKS.__getitem__)
        return found


class KeyGuard:
    """Middleware: 404 for a path that is not in the table, 405 for a method, 401 without a key.

    The token comes in `Authorization: Bearer`, and nowhere else: addresses end up in logs. Who asks
    is `scope["state"]["principal"]` for those within, and None on a public route without a key.

    Args:
        app: What answers.
        keys: None for a server on which everybody is `NOBODY`, who may do everything.
        routes: The table.
    """

    def __init__(self, app: App, *, keys: KeyFile | None, routes: RouteTable) -> None:
        self._app = app
        self._keys = keys
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        methods = self._routes.methods(path) if scope["type"] == "http" else {}
        if not methods:
            await refuse(scope, receive, send, 404, "not_found", "there is no such path")
            return
        access = methods.get(scope["method"])
        if access is None:
            allow = ", ".join(sorted(methods))
            message = f"this path takes {allow}"
            await refuse(scope, receive, send, 405, "method_not_allowed", message, {"Allow": allow})
            return
        if self._keys is None:
            principal: Principal | None = NOBODY
        elif _has_key_in_query(scope):
            await _ask_for_key(
                scope,
                receive,
                send,
                "a key in the address ends up in logs, so it is not taken; send it in the header "
                "'Authorization: Bearer KEY', and revoke this one",
            )
            return
        else:
            token = _token(scope)
            principal = None if token is None else self._keys.find(token)
            if principal is None and access != "public":
                message = (
                    "no API key; send it in the header 'Authorization: Bearer KEY'"
                    if token is None
                    else "this API key is not valid here"
                )
                await _ask_for_key(scope, receive, send, message)
                return
        if principal is not None and _RANKS[principal.role] < _RANKS[access]:
            message = "this API key may not do that; it takes one with the role admin"
            await refuse(scope, receive, send, 403, "forbidden", message)
            return
        request_state(scope)["principal"] = principal
        await self._app(scope, receive, send)


def _route(entry: str, access: Access) -> Route:
    match = _ENTRY.fullmatch(entry)
    if match is None or access not in _RANKS or _BAD_PATH.search(match[2]):
        raise ParameterError(
            f"route is {entry!r} with access {access!r}, expected one such as "
            "'GET /v1/jobs/{id}' with public, user or admin"
        )
    method, path = match.groups()
    return Route(method, path, access, re.compile("".join(_pattern_parts(path)), re.DOTALL))


def _pattern_parts(path: str) -> Iterable[str]:
    end = 0
    for part in _PART.finditer(path):
        yield re.escape(path[end : part.start()])
        yield ".+" if part[2] else "[^/]+"
        end = part.end()
    yield re.escape(path[end:])


def _token(scope: Scope) -> str | None:
    """What follows `Bearer`; None where there is no such header, or more than one."""
    values = header_values(scope, b"authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _has_key_in_query(scope: Scope) -> bool:
    query = unquote_plus(scope.get("query_string", b"").decode("latin-1"))
    names = (part.partition("=")[0] for part in query.split("&"))
    return TOKEN_PREFIX in query or any(
        name.lower().replace("_", "").replace("-", "") in _KEY_NAMES for name in names
    )


async def _ask_for_key(scope: Scope, receive: Receive, send: Send, message: str) -> None:
    headers = {"WWW-Authenticate": 'Bearer realm="bootpig-rt"'}
    await refuse(scope, receive, send, 401, "invalid_api_key", message, headers)
