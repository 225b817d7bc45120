"""Which names a server answers to, and which web pages may talk to it.

A page of another site can make a browser send requests to a server in the user's own network. By
DNS rebinding, where the page's own name comes to point at the server, it can even read the answers.
Such requests name the page's host in `Host`, or its site in `Origin`: both are checked, and neither
can be set by a page.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.asgi import (
    SAFE_METHODS,
    App,
    Receive,
    Scope,
    Send,
    header_values,
)
from bootpig_rt.server.guard.authority import (
    Authority,
    Origin,
    is_loopback,
    is_same_origin,
    parse_authority,
    parse_origin,
    usual_address,
)
from bootpig_rt.server.guard.cors import answer_preflight, is_preflight, with_cors
from bootpig_rt.server.guard.refuse import refuse

logger = logging.getLogger(__name__)


def bind_check(host: str, *, has_keys: bool, insecure: bool) -> None:
    """Refuse to serve a network without API keys, unless that is wanted.

    Args:
        host: The address to bind.
        has_keys: Whether requests need a key.
        insecure: Whether the user insists.

    Raises:
        ParameterError: Not a loopback address, no keys, and not wanted.
    """
    if has_keys or insecure or is_loopback(host):
        return
    raise ParameterError(
        f"host {host!r} lets others reach this server and there are no API keys; "
        "make one with `bootpig-rt keys add keys.json NAME --role admin` and give "
        "--keys keys.json, or say --insecure"
    )


@dataclass(frozen=True)
class HostRules:
    """Hosts that a server answers to. Loopback is always among them. Ports do not count.

    Attributes:
        names: Hosts in the form of `Authority.host`.
        suffixes: `.example.org` for all hosts below `example.org`.
        is_any: Whether every host is allowed.
    """

    names: frozenset[str]
    suffixes: tuple[str, ...]
    is_any: bool

    @classmethod
    def of(cls, allowed: Iterable[str]) -> HostRules:
        """Read `example.org`, `*.example.org`, `192.168.1.5`, `[fd00::1]`, or `*` for any.

        Raises:
            ParameterError: Something else.
        """
        names, suffixes, is_any = set(), [], False
        for entry in allowed:
            wild = entry.startswith("*.")
            bare = entry.removeprefix("*.")
            is_v6 = ":" in bare and usual_address(bare) is not None
            authority = parse_authority(f"[{bare}]" if is_v6 else bare)
            if entry == "*":
                is_any = True
            elif authority is None or authority.port is not None:
                raise ParameterError(
                    f"allowed host is {entry!r}, expected a name such as 'pics.example.org' or "
                    "'*.example.org' or an address, without scheme and port"
                )
            elif wild:
                suffixes.append("." + authority.host)
            else:
                names.add(authority.host)
        return cls(frozenset(names), tuple(suffixes), is_any)

    def allows(self, host: str) -> bool:
        """Whether `host`, in the form of `Authority.host`, is one of them."""
        return (
            self.is_any or is_loopback(host) or host in self.names or host.endswith(self.suffixes)
        )


class HostGuard:
    """Middleware: 403 for a host that is not this server's, and for pages of other sites.

    Allowed without being named are loopback, and the address at which the request came in, by which
    probes ask and to which no page can point a name of its own. A page of an allowed origin gets
    the CORS headers that its browser asks for; there are no cookies, so no credentials either.

    Args:
        app: What answers.
        allowed_hosts: More hosts, as `HostRules.of` reads them.
        allowed_origins: Pages of other sites that may use the server: `https://app.example.org`.

    Raises:
        ParameterError: An entry that cannot be read.
    """

    def __init__(
        self,
        app: App,
        *,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._rules = HostRules.of(allowed_hosts)
        self._origins = frozenset(_origin_of(entry) for entry in allowed_origins)
        if self._rules.is_any:
            logger.warning("every Host is allowed: nothing stops DNS rebinding")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = self._host(scope)
        if host is None:
            message = (
                "this server does not answer to that Host; ask by its own name, or start it with "
                "that name as an allowed host"
            )
            await refuse(scope, receive, send, 403, "bad_host", message)
            return
        values = header_values(scope, b"origin")
        origin = parse_origin(values[0]) if len(values) == 1 else None
        is_foreign = origin in self._origins
        if not is_foreign and not _is_own_page(scope, values, origin, host):
            message = (
                "a page of another site may not use this server; start it with that site as an "
                "allowed origin"
            )
            await refuse(scope, receive, send, 403, "bad_origin", message)
        elif not is_foreign:
            await self._app(scope, receive, send)
        elif is_preflight(scope):
            await answer_preflight(send, values[0])
        else:
            await self._app(scope, receive, with_cors(send, values[0]))

    def _host(self, scope: Scope) -> Authority | None:
        """The host that is asked for; None where it is not this server."""
        values = header_values(scope, b"host")
        host = parse_authority(values[0]) if len(values) == 1 else None
        if host is None:
            return None
        server = scope.get("server") or ("", None)
        is_socket = usual_address(host.host) is not None and host.host == usual_address(
            str(server[0])
        )
        return host if is_socket or self._rules.allows(host.host) else None


def _origin_of(entry: str) -> Origin:
    origin = parse_origin(entry)
    if origin is None:
        raise ParameterError(
            f"allowed origin is {entry!r}, expected one such as 'https://app.example.org'"
        )
    return origin


def _is_own_page(scope: Scope, values: list[str], origin: Origin | None, host: Authority) -> bool:
    """Whether a request is of no page at all, or of one that this server sent."""
    is_changing = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
    # Where a browser says that two sites are involved, no other header makes it one.
    if is_changing and "cross-site" in header_values(scope, b"sec-fetch-site"):
        return False
    return values == [] or (origin is not None and is_same_origin(origin, host))
