"""The service behind its guards: who may call which route, and how large a body may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.types import ASGIApp

from bootpig_rt.server.guard.access import Access
from bootpig_rt.server.guard.body import BodyLimits
from bootpig_rt.server.guard.keys import KeyFile
from bootpig_rt.server.guard.stack import guard_app
from bootpig_rt.server.observe import PROBES
from bootpig_rt.server.options import ServerOptions

ACCESS: Mapping[str, Access] = {
    "GET /livez": "public",
    "GET /readyz": "public",
    "GET /metrics": "user",
    "GET /openapi.json": "user",
    "GET /v1/models": "user",
    "GET /v1/models/{name}": "user",
    "GET /v1/limits": "user",
    "POST /v1/images/generations": "user",
    "POST /v1/images/edits": "user",
    "POST /v1/subjects": "user",
    "POST /v1/subjects/preview": "user",
    "GET /v1/subjects": "user",
    "GET /v1/subjects/{subject_id}": "user",
    "GET /v1/subjects/{subject_id}/preview": "user",
    "GET /v1/subjects/{subject_id}/file": "user",
    "DELETE /v1/subjects/{subject_id}": "user",
    "GET /v1/jobs/{job_id}": "user",
    "POST /v1/jobs/{job_id}/cancel": "user",
    "POST /v1/admin/reload": "admin",
}
"""Every route of the API. One that is not here is closed."""

PAGE: Mapping[str, Access] = {
    "GET /": "public",
    "GET /page/{path:path}": "public",
}
"""The page holds no data of anybody: it asks for the key itself."""

_JSON_BYTES = 256 << 10
_UPLOADS = ("/v1/images/edits", "/v1/subjects")


def access_of(options: ServerOptions) -> dict[str, Access]:
    """Who may call what, on a service with these options."""
    access = dict(ACCESS)
    if options.page:
        access |= PAGE
    if options.public_metrics:
        access["GET /metrics"] = "public"
    return access


def guarded(
    app: ASGIApp, options: ServerOptions, *, observe: Callable[[ASGIApp], ASGIApp] | None = None
) -> ASGIApp:
    """An application behind all guards that the options ask for.

    Args:
        app: The routes.
        options: Of the service.
        observe: Wraps what tells of every request, as for `guard_app`.

    Raises:
        ConfigError: The file of keys cannot be used.
        ParameterError: A host or origin that cannot be read.
    """
    small = BodyLimits(_JSON_BYTES, options.body_timeout_s, options.max_connections)
    uploads = BodyLimits(
        options.max_body_bytes,
        options.body_timeout_s,
        options.max_uploads,
        options.tenant_max_uploads,
    )
    return guard_app(
        app,
        keys=None if options.keys is None else KeyFile.load(options.keys),
        routes=access_of(options),
        body_limits={"/": small} | dict.fromkeys(_UPLOADS, uploads),
        allowed_hosts=options.allowed_hosts,
        allowed_origins=options.allowed_origins,
        always=PROBES,
        observe=observe,
    )
