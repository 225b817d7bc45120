"""Events of a local engine on their way to a reader."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from bootpig_rt.engine.events import StepEvent
from bootpig_rt.errors import ParameterError
from bootpig_rt.request import Request
from bootpig_rt.server.local import load_local
from bootpig_rt.server.local_engine import UnreadEvents
from bootpig_rt.server.options import ServerOptions


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


def test_a_service_decodes_with_the_tiny_decoder_when_it_is_told_to(
    bundle_with_tiny_folder: Path,
) -> None:
    client = load_local("tiny", bundle_with_tiny_folder, ServerOptions(decoder="tiny"))
    try:
        plan = client.pipeline.engine.planner.plan(Request(prompt="a dog", seed=0))
        assert plan.parameters.decoder == "tiny"
    finally:
        asyncio.run(client.close(drain_s=1.0))
    with pytest.raises(ParameterError, match="decoder is 'quick', expected one of: full, tiny"):
        ServerOptions(decoder="quick")  # type: ignore[arg-type]
