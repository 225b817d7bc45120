"""Bodies as the app meets them, and how their places are counted; without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from bootpig_rt.server.guard.asgi import App, Message, Receive, Scope, Send
from bootpig_rt.server.guard.body import BodyGuard, BodyLimits
from bootpig_rt.server.guard.keys import Principal

LIMITS = {"/": BodyLimits(10, max_at_once=3, max_per_tenant=2), "/ab": BodyLimits(2)}


@asynccontextmanager
async def request(
    guard: BodyGuard,
    tenant: str = "",
    *parts: bytes,
    path: str = "/x",
    root: str = "",
    ends: bool = True,
) -> AsyncIterator[list[Any]]:
    """A request whose body comes when the block ends; yields what was sent."""
    sent: list[Any] = []
    goes_on = asyncio.Event()
    coming = list(parts or [b"x"])

    async def receive() -> Message:
        await goes_on.wait()
        if not coming:
            return {"type": "http.disconnect"}
        body = coming.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(coming) or not ends}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "root_path": root,
        "headers": [(b"transfer-encoding", b"chunked")],
        "state": {"principal": Principal(tenant, "user")},
    }
    task = asyncio.create_task(guard(scope, receive, send))
    await asyncio.sleep(0)
    try:
        yield sent
    finally:
        goes_on.set()
        await task


def statuses(sent: list[Any]) -> list[int]:
    return [message["status"] for message in sent if "status" in message]


def guard_of(*steps: Callable[[Receive, Send], Coroutine[Any, Any, None]]) -> BodyGuard:
    """A guard around an app that takes some steps."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for step in steps:
            await step(receive, send)

    return BodyGuard(app, limits=LIMITS)


async def read(receive: Receive, send: Send) -> None:
    await receive()


async def answer(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def fail(receive: Receive, send: Send) -> None:
    raise LookupError


async def run(guard: BodyGuard, *parts: bytes, **options: Any) -> list[Any]:
    """What was sent to a request."""
    async with request(guard, "", *parts, **options) as sent:
        pass
    return sent


def test_a_tenant_cannot_take_the_places_of_the_others() -> None:
    async def scenario() -> None:
        guard = guard_of(read, answer)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            admitted = [await enter(request(guard, "alice")) for _ in range(2)]
            assert statuses(await enter(request(guard, "alice"))) == [503]
            assert guard.num_reading == 2
            admitted.append(await enter(request(guard, "bob")))
            assert statuses(await enter(request(guard, "carol"))) == [503]
            assert [statuses(sent) for sent in admitted] == [[], [], []]
        assert [statuses(sent) for sent in admitted] == [[200]] * 3
        assert guard.num_reading == 0

    asyncio.run(scenario())


def test_without_keys_all_places_are_for_everybody() -> None:
    async def scenario() -> None:
        guard = guard_of(read, answer)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(request(guard))
            assert guard.num_reading == 3
        assert guard.num_reading == 0

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_frees_its_place() -> None:
    async def scenario() -> None:
        guard = guard_of(read)

        async def never(*_: object) -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        scope = {"type": "http", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
        task = asyncio.create_task(guard(scope, never, never))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert guard.num_reading == 1
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert guard.num_reading == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("parts", "ends"),
    [([b"x"], True), ([b"x" * 11], False), ([b"x", b"y"], False)],
    ids=["whole", "refused", "left"],
)
def test_the_place_is_free_once_the_body_is_over_though_the_app_goes_on(
    parts: list[bytes], ends: bool
) -> None:
    counts: list[int] = []

    async def count(receive: Receive, send: Send) -> None:
        counts.append(guard.num_reading)

    guard = guard_of(count, *[read] * 3, count)
    asyncio.run(run(guard, *parts, ends=ends))
    assert counts == [1, 0]


def test_the_place_is_free_once_the_app_has_answered_without_reading() -> None:
    counts: list[int] = []

    async def count(receive: Receive, send: Send) -> None:
        counts.append(guard.num_reading)

    guard = guard_of(count, answer, count)
    asyncio.run(run(guard))
    assert counts == [1, 0]


def test_after_a_refusal_the_app_hears_that_the_client_left_and_is_not_heard() -> None:
    heard: list[str] = []

    async def hear(receive: Receive, send: Send) -> None:
        heard.append((await receive())["type"])

    guard = guard_of(hear, hear, hear, answer)
    sent = asyncio.run(run(guard, b"x" * 6, b"x" * 6, b"x"))
    assert heard == ["http.request", "http.disconnect", "http.disconnect"]
    assert statuses(sent) == [413]
    assert len(sent) == 2


def test_what_the_app_raises_is_a_fault_unless_its_request_was_refused() -> None:
    with pytest.raises(LookupError):
        asyncio.run(run(guard_of(read, fail)))
    assert statuses(asyncio.run(run(guard_of(read, fail), b"x" * 11))) == [413]


def test_limits_are_for_whole_parts_of_a_path() -> None:
    for path, status in (("/ab", 413), ("/ab/c", 413), ("/abc", 200), ("/a", 200)):
        sent = asyncio.run(run(guard_of(read, answer), b"xyz", path=path))
        assert statuses(sent) == [status]


def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def unused(*_: object) -> Any: ...

    guard: App = BodyGuard(app, limits=LIMITS)
    asyncio.run(guard({"type": "lifespan"}, unused, unused))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_limits_hold_below_the_path_that_a_proxy_serves_the_app_at() -> None:
    async def work() -> list[Any]:
        async with request(guard_of(read, answer), "", b"xxx", path="/in/ab", root="/in") as sent:
            pass
        return statuses(sent)

    assert asyncio.run(work()) == [413]
