"""What is refused before references cost anything, and what their encoding may cost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bootpig_rt.errors import DeadlineExceeded
from bootpig_rt.server.calls import Call
from bootpig_rt.server.drawing import Uploads, begin
from bootpig_rt.server.engine_client import Load
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.access import NOBODY
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.schema import ImageFields
from bootpig_rt.server.service import Service


class Model:
    """A client that never gets done with references."""

    class facts:
        name = "one"
        num_inference_steps = 4

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting

    def load(self) -> Load:
        return Load(self.waiting, 0, 1.0)

    async def prepare(self, images: Any, **_: Any) -> Any:
        await asyncio.sleep(60)


def service_of(**options: Any) -> Service:
    return Service(ServerOptions(**options), {}, Output(), Metrics(["one"]))


def test_pictures_whose_references_are_being_encoded_take_places_to_wait() -> None:
    service, model = service_of(max_waiting=3), Model(waiting=1)
    service.check_room([model])  # type: ignore[list-item]
    service.open_job("req_1", NOBODY, model, 2)  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        service.check_room([model])  # type: ignore[list-item]
    assert (caught.value.code, caught.value.status) == ("queue_full", 429)


def test_a_full_model_turns_nobody_away_from_another() -> None:
    service: Any = service_of(max_waiting=1)
    service.check_room([Model(waiting=1), Model(waiting=0)])
    with pytest.raises(ApiError, match="1 pictures wait"):
        service.check_room([Model(waiting=1), Model(waiting=1)])


def test_references_that_are_not_read_by_the_deadline_are_waited_for_no_longer() -> None:
    service, model = service_of(), Model()
    fields = ImageFields(prompt="a dog", deadline_s=0.05)

    async def ask() -> None:
        await begin(service, Call("req_1", NOBODY), model, fields, Uploads([b"png"]))  # type: ignore[arg-type]

    with pytest.raises(DeadlineExceeded, match="before its references were read"):
        asyncio.run(ask())
    assert service.jobs.live() == []
    assert service.jobs.show("", "req_1")["status"] == "failed"


def test_a_model_that_encodes_a_subject_is_not_closed_when_it_is_replaced() -> None:
    closed: list[str] = []

    class Closing(Model):
        async def close(self, *, drain_s: float) -> None:
            closed.append("old")

    async def replace_it() -> None:
        service: Any = service_of()
        old = Closing()
        with service.using(old):
            retiring = asyncio.create_task(service._retire(old))
            await asyncio.sleep(0.2)
            assert closed == []
        await asyncio.wait_for(retiring, 5)

    asyncio.run(replace_it())
    assert closed == ["old"]
