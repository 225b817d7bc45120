"""Of every request one access line and one count, however it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bootpig_rt.request import Timings
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.observe import Observer
from bootpig_rt.server.request_notes import note, note_timings


def identified(app: ASGIApp) -> ASGIApp:
    """An application within guards that know who asks."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {}).update(request_id="req_7", principal=Principal("lab", "user"))
        if scope["path"] == "/refused":
            scope["state"]["refusal"] = "bad_host"
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    return guard


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["small"])


@pytest.fixture
def app(metrics: Metrics) -> Observer:
    inner, routes = FastAPI(), APIRouter(prefix="/v1")

    @routes.get("/jobs/{id}")
    async def job(id: str) -> str:
        await asyncio.to_thread(note, model="small", steps=4, prompt="a secret")
        note_timings(Timings(queue_ms=5.0, denoise_ms=20.0))
        return id

    @routes.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a bug")

    @routes.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.001)

        return StreamingResponse(pieces())

    @inner.get("/livez")
    async def alive() -> str:
        return "ok"

    inner.include_router(routes)
    return Observer(identified(inner), metrics)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Fields of the access lines so far."""
    caplog.set_level(logging.INFO, logger="bootpig_rt.server.access")

    def get() -> list[dict[str, Any]]:
        ours = [one for one in caplog.records if one.name == "bootpig_rt.server.access"]
        return [one.__dict__["fields"] for one in ours]

    return get


def ask(app: Observer, path: str) -> int:
    async def get() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get(path)).status_code

    return asyncio.run(get())


def count(metrics: Metrics, route: str, status: str) -> float:
    labels = {"route": route, "method": "GET", "status": status}
    return metrics.registry.get_sample_value("bootpig_http_requests_total", labels) or 0.0


def in_progress(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("bootpig_http_requests_in_progress")


def test_a_request_is_told_with_its_route_and_what_was_noted(
    app: Observer, metrics: Metrics, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    assert ask(app, "/v1/jobs/abc") == 200
    (line,) = lines()
    assert line.pop("took_ms") > 0
    assert line == {
        "method": "GET",
        "path": "/v1/jobs/abc",
        "route": "/v1/jobs/{id}",
        "status": 200,
        "tenant": "lab",
        "model": "small",
        "steps": 4,
        "prompt": "a secret",  # the formatters leave it out
        **Timings(queue_ms=5.0, denoise_ms=20.0).to_dict(),
    }
    assert count(metrics, "/v1/jobs/{id}", "2xx") == 1


def test_what_is_not_there_is_counted_as_other(app: Observer, metrics: Metrics) -> None:
    assert [ask(app, f"/v1/nothing{i}") for i in range(3)] == [404] * 3
    assert count(metrics, "other", "4xx") == 3


def test_a_bug_is_a_500_and_leaves_no_gauge_behind(
    app: Observer, metrics: Metrics, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    assert ask(app, "/v1/fails") == 500
    assert lines()[0]["status"] == 500
    assert count(metrics, "/v1/fails", "5xx") == 1
    assert in_progress(metrics) == 0


def test_a_refusal_of_a_guard_is_counted_by_its_code(
    app: Observer, metrics: Metrics, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    assert ask(app, "/refused") == 403
    found = metrics.registry.get_sample_value("bootpig_refusals_total", {"reason": "bad_host"})
    assert found == 1
    assert lines()[0]["error"] == "bad_host"


def test_probes_do_not_fill_the_log(
    app: Observer, metrics: Metrics, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    assert ask(app, "/livez") == 200
    assert lines() == []
    assert count(metrics, "/livez", "2xx") == 1


def test_a_client_that_leaves_is_a_499_and_leaves_no_gauge_behind(
    app: Observer, metrics: Metrics, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async def leave() -> None:
        got, asked, has_left = 0, 0, asyncio.Event()

        async def receive() -> Message:
            nonlocal asked
            asked += 1
            if asked == 1:
                return {"type": "http.request", "body": b"", "more_body": False}
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal got
            got += 1
            if got == 1:
                assert in_progress(metrics) == 1
            if got > 5:
                has_left.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/stream",
            "raw_path": b"/v1/stream",
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
            "scheme": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert lines()[0]["status"] == 499
    assert count(metrics, "/v1/stream", "4xx") == 1
    assert in_progress(metrics) == 0
