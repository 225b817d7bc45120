"""An answer before the body was read: what happens to the rest of the body."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bootpig_rt.server.guard import early_answers
from bootpig_rt.server.guard.asgi import Message, Receive, Scope, Send
from bootpig_rt.server.guard.early_answers import EarlyAnswers

PART = 1 << 20


def run(*, num_parts: int, num_read: int = 0, leaves: bool = False) -> list[Any]:
    """What happened in order: parts that came, and what was sent.

    Args:
        num_parts: Of the body.
        num_read: Of them, by the app before it answers.
        leaves: The client does, in place of the last part.
    """
    events: list[Any] = []

    async def receive() -> Message:
        number = events.count("part")
        events.append("part")
        is_last = number + 1 == num_parts
        if is_last and leaves:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": bytes(PART), "more_body": not is_last}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            closes = (b"connection", b"close") in message["headers"]
            events.append("start and close" if closes else "start")
        else:
            events.append((message["body"], message.get("more_body", False)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(num_read):
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"early"})
        events.append("app is done")

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(EarlyAnswers(app)(scope, receive, send))
    return events


def test_the_rest_is_thrown_away_after_the_whole_answer_and_before_its_end() -> None:
    told: list[Any] = ["start and close", (b"early", True), "app is done"]
    told += ["part", "part", "part", (b"", False)]
    assert run(num_parts=3) == told
    assert run(num_parts=3, leaves=True) == told
    assert run(num_parts=4, num_read=1) == ["part", *told]


def test_a_body_that_was_read_leaves_the_connection_as_it_is() -> None:
    assert run(num_parts=2, num_read=2) == [
        *("part", "part", "start", (b"early", False), "app is done"),
    ]


def test_no_more_than_enough_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_answers, "LINGER_BYTES", 3 * PART)
    events = run(num_parts=100)
    assert events.count("part") == 3
    assert events[-1] == (b"", False)
