"""The application: the routes over a service, and the guards before them.

From the network inwards: request id and headers, host and origin, key and role, size and time of
the body, then the routes. What a route raises becomes OpenAI's error body here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bootpig_rt import __version__
from bootpig_rt.errors import BootPIGError
from bootpig_rt.server.engine_client import ModelFacts
from bootpig_rt.server.errors import ApiError, api_error
from bootpig_rt.server.images import image_routes
from bootpig_rt.server.other_routes import job_routes, model_routes, operation_routes
from bootpig_rt.server.page import add_page
from bootpig_rt.server.request_notes import note
from bootpig_rt.server.service import Service
from bootpig_rt.server.subject_routes import subject_routes

logger = logging.getLogger(__name__)

Answer: TypeAlias = Callable[[HttpRequest, Exception], Awaitable[Response]]
"""What a caller is told of an error."""


def create_app(service: Service) -> FastAPI:
    """The routes over a service, without guards; see `guarded`."""
    app = FastAPI(
        title="bootpig-rt",
        version=__version__,
        summary="Pictures of your subject in new scenes.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    for routes in (
        image_routes(service),
        subject_routes(service),
        job_routes(service),
        model_routes(service),
        operation_routes(service),
    ):
        app.include_router(routes)
    app.openapi = _Description(app, service)  # type: ignore[method-assign]  # as its docs say
    if service.options.page:
        add_page(app)

    async def refuse(_: HttpRequest, error: Exception) -> Response:
        told = api_error(error)
        service.metrics.refused(told.code)
        note(error=told.code)
        return JSONResponse(told.body(), status_code=told.status, headers=told.headers())

    async def refuse_parameter(http: HttpRequest, error: Exception) -> Response:
        first: dict[str, Any] = {}
        if isinstance(error, RequestValidationError):
            first = dict(error.errors()[0])
        name = str(first.get("loc", ("?",))[-1])[:60]
        text = f"{name}: {first.get('msg', 'invalid')}"
        return await refuse(http, ApiError(400, "invalid_value", text, param=name))

    async def refuse_route(http: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        codes = {404: "not_found", 405: "method_not_allowed"}
        texts = {404: "there is no such route", 405: "the route does not take this method"}
        code, text = codes.get(status, "invalid_request"), texts.get(status, "not a valid request")
        return await refuse(http, ApiError(status, code, text))

    async def client_left(_: HttpRequest, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it: it ends the request without an error

    app.add_exception_handler(ClientDisconnect, client_left)
    app.add_exception_handler(RequestValidationError, refuse_parameter)
    app.add_exception_handler(HTTPException, refuse_route)
    for kind in (ApiError, BootPIGError):
        app.add_exception_handler(kind, refuse)
    app.add_middleware(_HeadAsGet)
    app.add_middleware(_AnyOther, answer=refuse)
    return app


class _Description:
    """The OpenAPI file: made when it is asked for, and anew once other models are loaded."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app, self._service = app, service
        self._document: dict[str, Any] = {}
        self._models: Sequence[ModelFacts] | None = None

    def __call__(self) -> dict[str, Any]:
        from bootpig_rt.server.openapi.document import describe  # its models take a moment

        models = [one.facts for one in self._service.clients.values()]
        if models != self._models:
            self._document, self._models = describe(self._app, self._service), models
        return self._document


class _HeadAsGet:
    """Middleware: HEAD is answered as GET is, without the body. FastAPI's routes take no HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        within = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(within, receive, send_head)
        finally:
            scope["route"] = within.get("route")  # whoever tells of the request looks for it


class _AnyOther:
    """Middleware: answers whatever else the routes raise.

    A handler for `Exception` would not do: Starlette raises that again after its answer, and the
    server then closes the connection amid what the client sends next.
    """

    def __init__(self, app: ASGIApp, answer: Answer) -> None:
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception as error:  # of any kind: the caller gets a fixed text, the log the rest
            if has_begun:
                raise
            response = await self._answer(HttpRequest(scope), error)
            await response(scope, receive, send)
