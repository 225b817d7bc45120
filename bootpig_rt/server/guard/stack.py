"""All guards around an app, in the one order that is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bootpig_rt.server.guard.access import Access, KeyGuard, RouteTable
from bootpig_rt.server.guard.asgi import App
from bootpig_rt.server.guard.body import BodyGuard, BodyLimits
from bootpig_rt.server.guard.capacity import CapacityGuard
from bootpig_rt.server.guard.early_answers import EarlyAnswers
from bootpig_rt.server.guard.headers import SecurityHeaders
from bootpig_rt.server.guard.hosts import HostGuard
from bootpig_rt.server.guard.keys import KeyFile


def guard_app(
    app: App,
    *,
    keys: KeyFile | None,
    routes: Mapping[str, Access],
    body_limits: Mapping[str, BodyLimits],
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    always: Iterable[str] = (),
    observe: Callable[[App], App] | None = None,
) -> App:
    """An app that only gets requests which may come to it.

    A request passes from the outside in: connections whose body stays unread are closed well;
    somebody may observe; every answer gets its id and headers; what comes on a connection over the
    limit is refused; then host and origin, then the key, so that a stranger holds no place for a
    body; then the body's limits, which the app's reading runs into.

    Args:
        app: What answers.
        keys: As for `KeyGuard`.
        routes: As for `RouteTable`.
        body_limits: As for `BodyGuard`.
        allowed_hosts: As for `HostGuard`.
        allowed_origins: As for `HostGuard`.
        always: Paths of probes, answered on connections over the limit too.
        observe: Wraps what sees every request and its answer, refusals included; their codes are in
            `scope["state"]["refusal"]`.

    Raises:
        ParameterError: An entry of any of them that cannot be read.
    """
    with_body = BodyGuard(app, limits=body_limits)
    with_key = KeyGuard(with_body, keys=keys, routes=RouteTable(routes))
    with_host = HostGuard(with_key, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
    with_headers: App = SecurityHeaders(CapacityGuard(with_host, always=list(always)))
    # Not around EarlyAnswers, which learns that a client left after it had its whole answer.
    return EarlyAnswers(with_headers if observe is None else observe(with_headers))
