"""Events of a local engine on their way to a reader."""

from __future__ import annotations

import asyncio

from PIL import Image

from bootpig_rt.engine.events import StepEvent
from bootpig_rt.server.local_engine import UnreadEvents


def step(done: int) -> StepEvent:
    return StepEvent(done, 200, 0, (0,), (Image.new("RGB", (8, 8)),), list, lambda: None)


def test_a_slow_reader_hears_of_every_step_and_piles_up_no_previews() -> None:
    async def read() -> list[StepEvent]:
        events = UnreadEvents()
        for done in range(1, 201):
            events.put(step(done))
        events.put(None)
        found = []
        while isinstance(event := await events.get(), StepEvent):
            found.append(event)
        return found

    found = asyncio.run(read())
    assert [one.done for one in found] == list(range(1, 201))
    assert [one.done for one in found if one.previews is not None] == [197, 198, 199, 200]


def test_a_reader_who_waits_hears_of_an_event_when_it_comes() -> None:
    async def read() -> object:
        events = UnreadEvents()
        reading = asyncio.ensure_future(events.get())
        await asyncio.sleep(0)
        events.put(step(1))
        return await asyncio.wait_for(reading, 5)

    assert isinstance(asyncio.run(read()), StepEvent)
