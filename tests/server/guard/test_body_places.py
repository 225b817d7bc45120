"""How places for bodies are counted, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bootpig_rt.server.guard.asgi import Message, Receive, Scope, Send
from bootpig_rt.server.guard.body import BodyGuard, BodyLimits
from bootpig_rt.server.guard.keys import Principal

LIMITS = {"/": BodyLimits(10, max_at_once=3, max_per_tenant=2)}


async def reads_one_part(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def request(guard: BodyGuard, tenant: str) -> AsyncIterator[list[Any]]:
    """A request whose body comes when the block ends; yields what was sent."""
    sent: list[Any] = []
    goes_on = asyncio.Event()

    async def receive() -> Message:
        await goes_on.wait()
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": "/x",
        "headers": [(b"content-length", b"1")],
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


def test_a_tenant_cannot_take_the_places_of_the_others() -> None:
    async def scenario() -> None:
        guard = BodyGuard(reads_one_part, limits=LIMITS)
        async with AsyncExitStack() as stack:
            admitted = [
                await stack.enter_async_context(request(guard, tenant))
                for tenant in ("alice", "alice")
            ]
            third = await stack.enter_async_context(request(guard, "alice"))
            assert statuses(third) == [503]
            assert guard.num_reading == 2
            admitted.append(await stack.enter_async_context(request(guard, "bob")))
            fourth = await stack.enter_async_context(request(guard, "carol"))
            assert statuses(fourth) == [503]
            assert [statuses(sent) for sent in admitted] == [[], [], []]
        assert [statuses(sent) for sent in admitted] == [[200]] * 3
        assert guard.num_reading == 0

    asyncio.run(scenario())


def test_without_keys_all_places_are_for_everybody() -> None:
    async def scenario() -> None:
        guard = BodyGuard(reads_one_part, limits=LIMITS)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(request(guard, ""))
            assert guard.num_reading == 3
        assert guard.num_reading == 0

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_frees_its_place() -> None:
    async def scenario() -> None:
        guard = BodyGuard(reads_one_part, limits=LIMITS)

        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None: ...

        scope = {"type": "http", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
        task = asyncio.create_task(guard(scope, never, send))
        await asyncio.sleep(0)
        assert guard.num_reading == 1
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert guard.num_reading == 0

    asyncio.run(scenario())
