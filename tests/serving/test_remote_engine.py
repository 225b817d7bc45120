"""A model in other processes, seen from the one that takes requests.

The handle here calls replicas of this process, and fails as Ray's does: `test_ray_service.py` has
real processes, and kills them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.engine.events import DoneEvent, Event, Launch, StepEvent
from bootpig_rt.engine.options import Limits
from bootpig_rt.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFull,
    EngineLost,
    ParameterError,
)
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import GenerationResult, Request
from bootpig_rt.server.engine_client import Load
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.storage.stats import StoreStats

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError

from bootpig_rt.serving.fleet_watch import FleetWatch
from bootpig_rt.serving.messages import Description, Order, Status, Told
from bootpig_rt.serving.remote_engine import RemoteEngine
from bootpig_rt.serving.replica import EngineReplica
from bootpig_rt.serving.subject_storage import SubjectStorage

OPTIONS = ServerOptions(max_batch=4, max_waiting=8, threads=1)
LIMITS = Limits(num_inference_steps=100, num_images=4)


class Response:
    """What a call of a handle gives: to be awaited, or to be read as a stream.

    A stream runs in the replica whether or not it is read; cancelling it cancels its task there.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._told: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        found = self._call()
        return await found if asyncio.iscoroutine(found) else found

    async def _run(self) -> None:
        try:
            async for told in self._call():
                self._told.put_nowait(told)
        except asyncio.CancelledError:
            self._told.put_nowait(TaskCancelledError())
        except (ActorDiedError, BackPressureError) as error:
            self._told.put_nowait(error)
        except Exception as error:  # of the replica: a cause of one of Ray's
            self._told.put_nowait(RayTaskError("draw", "traceback", error))
        else:
            self._told.put_nowait(StopAsyncIteration())

    async def __anext__(self) -> Any:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        told = await self._told.get()
        if isinstance(told, BaseException):
            raise told
        return told

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Handle:
    """As much of a `DeploymentHandle` as the engine uses; `hurdles` fail calls one by one."""

    def __init__(self, replica: EngineReplica) -> None:
        self.replica = replica
        self.hurdles: list[Callable[[Order], AsyncIterator[Told]]] = []
        self.sent: list[tuple[str, Order]] = []
        self.engines: list[RemoteEngine] = []
        self._method, self._key = "", ""

    def options(self, *, method_name: str, stream: bool = False, session_id: str = "") -> Handle:
        self._method, self._key = method_name, session_id
        return self

    def remote(self, *args: Any) -> Response:
        if self._method == "draw":
            self.sent.append((self._key, args[0]))
            draw = self.hurdles.pop(0) if self.hurdles else self.replica.draw
            return Response(lambda: draw(args[0]))
        method = getattr(self.replica, self._method)
        return Response(lambda: method(*args))

    def broadcast(self, method: str, *args: Any) -> Any:
        raise TimeoutError("nobody is asked here")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineReplica]:
    """A replica of the shipped pair that fetches subjects from a folder."""
    folder = tmp_path_factory.mktemp("subjects")
    replica = EngineReplica("pair", str(default_model()), OPTIONS, str(folder), "r1")
    yield replica
    asyncio.run(replica.close(drain_s=0.0))


@pytest.fixture
def handle(replica: EngineReplica) -> Iterator[Handle]:
    """A way to the replica, without hurdles."""
    handle = Handle(replica)
    yield handle
    for engine in handle.engines:
        asyncio.run(engine.close(drain_s=0.0))


@pytest.fixture
def described(replica: EngineReplica) -> Description:
    """What the replica says of its model."""
    return replica.describe()


@pytest.fixture(scope="module")
def frog(replica: EngineReplica, root: Path) -> Subject:
    """A subject that was encoded by the replica."""
    image = (root / "bootpig_rt" / "assets" / "subjects" / "frog.png").read_bytes()

    async def encoded() -> Subject:
        prepared, warnings = await replica.prepare([image])
        assert warnings == []
        return await replica.encode(prepared, "a photo of a frog", 0)

    return asyncio.run(encoded())


def engine_of(
    handle: Handle, described: Description, storage: SubjectStorage | None = None
) -> RemoteEngine:
    engine = RemoteEngine(handle, described, LIMITS, storage, lambda launch: None)
    handle.engines.append(engine)
    return engine


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def drawn(engine: RemoteEngine, request: Request, **options: Any) -> GenerationResult:
    drawing = await engine.submit(request, request_id="7", **options)
    events = [event async for event in drawing.events()]
    assert drawing.progress().is_done
    assert isinstance(events[-1], DoneEvent)
    return events[-1].result


def dies(*before: Event | None, steps: int = 0) -> Callable[[Order], AsyncIterator[Told]]:
    """A replica that tells some things and dies."""

    async def draw(order: Order) -> AsyncIterator[Told]:
        progress = replace_progress(0)
        yield Told(None, progress)
        if steps:
            yield Told(None, replace_progress(steps))
        raise ActorDiedError

    return draw


def replace_progress(done: int) -> Any:
    from bootpig_rt.server.engine_client import Progress

    return Progress(done, 2, None, has_begun=bool(done), is_done=False)


REQUEST = Request(prompt="a red ball", num_inference_steps=2, seed=3)


def test_a_picture_is_the_one_that_a_pipeline_draws(
    handle: Handle, described: Description, replica: EngineReplica, frog: Subject
) -> None:
    request = REQUEST.of_subject(frog)
    result = run(drawn(engine_of(handle, described), request))
    alone = replica._engine.pipeline.generate([request])
    assert result.images[0].tobytes() == alone.images[0].tobytes()
    assert result.parameters == alone.parameters


def test_events_come_with_previews_and_without_what_is_bound_to_the_process(
    handle: Handle, described: Description
) -> None:
    async def work() -> list[Event]:
        drawing = await engine_of(handle, described).submit(
            replace(REQUEST, num_inference_steps=4), request_id="7", preview_every=2
        )
        assert drawing.progress().total_steps == 4
        return [event async for event in drawing.events()]

    steps = [event for event in run(work()) if isinstance(event, StepEvent)]
    assert [step.done for step in steps if step.previews] == [2, 4]
    with pytest.raises(ParameterError, match="preview_every"):
        steps[0].decode()


def test_what_the_engine_would_refuse_is_refused_without_asking_a_replica(
    handle: Handle, described: Description
) -> None:
    engine = engine_of(handle, described)
    for request, told in (
        (replace(REQUEST, width=63), "width is 63"),
        (replace(REQUEST, num_inference_steps=101), "at most 100 here"),
        (replace(REQUEST, num_images_per_prompt=5), "at most 4 here"),
    ):
        with pytest.raises(ParameterError, match=told):
            run(engine.submit(request, request_id="7"))
    assert handle.sent == []


def test_requests_of_one_subject_have_one_key_and_those_of_others_another(
    handle: Handle, described: Description, frog: Subject
) -> None:
    engine = engine_of(handle, described)
    for request in (
        REQUEST.of_subject(frog),
        replace(REQUEST, seed=8).of_subject(frog),
        replace(REQUEST, tenant="ann").of_subject(frog),
        REQUEST,
    ):
        run(drawn(engine, request))
    first, second, of_ann, without = (key for key, _ in handle.sent)
    assert first == second
    assert len({first, of_ann, without}) == 3
    assert without == ""


def test_reference_images_stay_where_they_are(
    handle: Handle, described: Description, frog: Subject
) -> None:
    assert frog.pixels is not None
    run(drawn(engine_of(handle, described), REQUEST.of_subject(frog)))
    sent = handle.sent[0][1].request.subject
    assert sent is not None
    assert sent.pixels is None
    assert sent.fingerprint == frog.fingerprint


def test_a_stored_subject_is_fetched_by_the_replica(
    handle: Handle, described: Description, replica: EngineReplica, frog: Subject
) -> None:
    assert replica._storage is not None
    storage = SubjectStorage(replica._storage.url)
    result = run(drawn(engine_of(handle, described, storage), REQUEST.of_subject(frog)))
    (_, order) = handle.sent[0]
    assert order.request.subject is None
    assert order.subject == frog.fingerprint
    assert result.parameters[0].subject_fingerprint == frog.fingerprint


def test_a_subject_that_is_forgotten_is_gone_from_the_storage_and_from_a_replica(
    handle: Handle, described: Description, replica: EngineReplica, frog: Subject
) -> None:
    assert replica._storage is not None
    storage = SubjectStorage(replica._storage.url)
    engine = engine_of(handle, described, storage)
    result = run(drawn(engine, REQUEST.of_subject(frog)))
    assert result.parameters[0].subject_fingerprint == frog.fingerprint
    assert replica._storage.holds(frog.fingerprint, "")
    run(engine.forget(frog.fingerprint, ""))
    run(replica.forget(frog.fingerprint, ""))
    assert not replica._storage.holds(frog.fingerprint, "")
    with pytest.raises(ParameterError, match="no subject"):
        SubjectStorage(replica._storage.url).get(frog.fingerprint, "")
    assert run(drawn(engine, REQUEST.of_subject(frog))).reference_passes > 0


def test_a_subject_that_the_storage_lost_is_sent_along(
    handle: Handle, described: Description, frog: Subject, tmp_path: Path
) -> None:
    elsewhere = SubjectStorage(str(tmp_path))  # the replica looks in another folder
    other = replace(frog, reference_prompt="a photo of another frog")
    run(drawn(engine_of(handle, described, elsewhere), REQUEST.of_subject(other)))
    first, second = (order for _, order in handle.sent)
    assert (first.request.subject, first.subject) == (None, other.fingerprint)
    assert second.request.subject is not None
    assert second.subject == ""


def test_a_request_whose_replica_died_before_its_first_step_is_drawn_by_another(
    handle: Handle, described: Description
) -> None:
    handle.hurdles = [dies()]
    assert len(run(drawn(engine_of(handle, described), REQUEST)).images) == 1
    assert len(handle.sent) == 2


@pytest.mark.parametrize("hurdles", [[dies(), dies()], [dies(steps=1)]])
def test_a_request_that_is_lost_otherwise_may_be_sent_again_by_its_caller(
    handle: Handle, described: Description, hurdles: list[Any]
) -> None:
    handle.hurdles = list(hurdles)
    with pytest.raises(EngineLost) as lost:
        run(drawn(engine_of(handle, described), REQUEST))
    assert lost.value.retry_after_s > 0
    assert len(handle.sent) == len(hurdles)


def test_a_full_fleet_says_when_to_try_again(handle: Handle, described: Description) -> None:
    async def full(order: Order) -> AsyncIterator[Told]:
        raise BackPressureError(num_queued_requests=9, max_queued_requests=9)
        yield

    async def busy(order: Order) -> AsyncIterator[Told]:
        raise EngineFull("no place is free", 4.0)
        yield

    for refuse, wait_s in ((full, 1.0), (busy, 4.0)):
        handle.hurdles = [refuse]
        with pytest.raises(EngineFull) as refused:
            run(drawn(engine_of(handle, described), REQUEST))
        assert refused.value.retry_after_s == wait_s


def test_cancelling_stops_the_replica_within_a_step(
    handle: Handle, described: Description, replica: EngineReplica
) -> None:
    async def work() -> Load:
        request = replace(REQUEST, num_inference_steps=100)
        drawing = await engine_of(handle, described).submit(request, request_id="7")
        events = drawing.events()
        while not isinstance(await anext(events), StepEvent):
            pass
        drawing.cancel()
        drawing.cancel()
        with pytest.raises(Cancelled):
            await anext(events)
        return await idle(replica)

    assert run(work()).running == 0


def test_leaving_the_events_stops_the_replica_within_a_step(
    handle: Handle, described: Description, replica: EngineReplica
) -> None:
    async def work() -> Load:
        request = replace(REQUEST, num_inference_steps=100)
        drawing = await engine_of(handle, described).submit(request, request_id="7")
        events = drawing.events()
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
        return await idle(replica)

    assert run(work()).running == 0


async def idle(replica: EngineReplica) -> Load:
    """The load of a replica, once it has had the time of some steps to become idle."""
    for _ in range(100):
        load = replica.status().load
        if not load.running:
            break
        await asyncio.sleep(0.02)
    return load


def test_a_deadline_travels(handle: Handle, described: Description) -> None:
    request = replace(REQUEST, num_inference_steps=100)
    with pytest.raises(DeadlineExceeded, match=r"ran out of its 0\.0"):
        run(drawn(engine_of(handle, described), request, deadline_s=0.05))
    (_, order) = handle.sent[0]
    assert order.deadline_s is not None
    assert 0 < order.deadline_s <= 0.05


def test_a_replica_that_falls_silent_is_not_waited_for(
    handle: Handle, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootpig_rt.serving.remote_engine._GRACE_S", 0.05)

    async def silent(order: Order) -> AsyncIterator[Told]:
        yield Told(None, replace_progress(0))
        await asyncio.sleep(60)

    handle.hurdles = [silent]
    with pytest.raises(DeadlineExceeded, match="silent"):
        run(drawn(engine_of(handle, described), REQUEST, deadline_s=0.05))


def test_leaving_before_a_replica_has_taken_a_request_takes_it_back(
    handle: Handle, described: Description
) -> None:
    seen: list[str] = []

    async def slow(order: Order) -> AsyncIterator[Told]:
        seen.append("begun")
        try:
            await asyncio.sleep(60)
            yield Told(None, replace_progress(0))
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def work() -> None:
        handle.hurdles = [slow]
        asking = asyncio.create_task(engine_of(handle, described).submit(REQUEST, request_id="7"))
        while not seen:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.01)
        assert seen == ["begun", "cancelled"]  # before the loop that ends cancels all

    run(work())


def status(name: str, waiting: int, hits: int, held: int, launches: int = 0) -> Status:
    return Status(
        name,
        1,
        Load(waiting, 1, float(waiting)),
        StoreStats(device_hits=hits, device_bytes=held),
        tuple(Launch(2, 4, 0.1) for _ in range(launches)),
    )


def test_the_fleet_is_summed_and_counters_outlive_their_replicas() -> None:
    told: list[Launch] = []
    watch = FleetWatch(Handle.__new__(Handle), told.append)
    try:
        watch.take([status("a", 3, 10, 100, launches=2), status("b", 5, 20, 200, launches=1)])
        assert watch.load() == Load(8, 2, 3.0)
        assert len(told) == 3
        watch.take([status("b", 1, 21, 200)])  # a has died
        assert watch.load() == Load(1, 1, 1.0)
        stats = watch.store_stats()
        assert (stats.device_hits, stats.device_bytes) == (31, 200)
        watch.take([status("a", 0, 11, 100), status("b", 1, 21, 200)])  # it was only late
        assert watch.store_stats().device_hits == 32
    finally:
        watch.close()
