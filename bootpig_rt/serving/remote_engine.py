"""RemoteEngine: what the service needs of a model whose engines run in other processes.

Requests that cannot be drawn are refused here, by the same plan that the engine would make. The
others go through Ray's handle to a replica, chosen by `routing.py`, and its events come back as
they happen. A replica that dies is not an error of its requests: one that had taken no step yet is
sent to another replica, once; of any other the caller hears that it may be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar, cast

from PIL import Image
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from bootpig_rt.backends.base import Backend, PairSpec
from bootpig_rt.engine.events import DoneEvent, Event, Launch, StepEvent
from bootpig_rt.engine.options import Limits
from bootpig_rt.engine.plan import Planner
from bootpig_rt.errors import (
    BootPIGError,
    Cancelled,
    DeadlineExceeded,
    EngineFull,
    EngineLost,
)
from bootpig_rt.images.picture import ImageSource
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.server.engine_client import Load, Progress
from bootpig_rt.serving.fleet_watch import FleetWatch
from bootpig_rt.serving.messages import Description, Order, SubjectMissing, Told
from bootpig_rt.serving.subject_storage import SubjectStorage
from bootpig_rt.storage.stats import StoreStats

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

CONNECT_S = 600.0
"""In which a first replica must be there: it loads a model."""

_GRACE_S = 2.0
"""A replica ends a late request itself; one that is cut off is not waited for longer than this."""

_CALL_S = 120.0
"""For references: preparing and encoding."""


class RemoteEngine:
    """One model that replicas draw with.

    Args:
        handle: Of Ray Serve, to the replicas.
        described: By one of them.
        limits: Of one request.
        storage: Where replicas fetch subjects; None sends each along.
        on_launch: Hears of the steps of all replicas, some time later.
    """

    def __init__(
        self,
        handle: Any,
        described: Description,
        limits: Limits,
        storage: SubjectStorage | None,
        on_launch: Callable[[Launch], None],
    ) -> None:
        """Begin to watch the replicas."""
        self.facts = described.facts
        self._handle, self._described = handle, described
        self._limits, self._storage = limits, storage
        known = _Known(described.spec, described.facts.backend, described.facts.device)
        self._planner = Planner(cast("Backend", known), described.tables)
        self._watch = FleetWatch(handle, on_launch)

    @classmethod
    def connect(
        cls,
        handle: Any,
        limits: Limits,
        storage: SubjectStorage | None,
        on_launch: Callable[[Launch], None],
    ) -> RemoteEngine:
        """Wait for a replica, and ask it what it draws with. Not for the thread of an event loop.

        Raises:
            EngineLost: None came up in time.
        """
        try:
            described = handle.describe.remote().result(timeout_s=CONNECT_S)
        except (TimeoutError, RayError, RayServeException) as error:
            raise EngineLost(f"no replica came up in {CONNECT_S:g} s: {error}", 5.0) from error
        return cls(handle, described, limits, storage, on_launch)

    async def prepare(
        self, images: Sequence[ImageSource], *, warnings: list[str] | None = None
    ) -> list[Image.Image]:
        """See `EngineClient`."""
        prepared, told = await self._call("prepare", list(images))
        if warnings is not None:
            warnings.extend(told)
        return list(prepared)

    async def encode(
        self, prepared: Sequence[Image.Image], reference_prompt: str, *, noise_seed: int
    ) -> Subject:
        """See `EngineClient`."""
        subject: Subject = await self._call("encode", list(prepared), reference_prompt, noise_seed)
        return subject

    def check_subject(self, subject: Subject) -> None:
        """See `EngineClient`."""
        subject.check_for(self._described.spec)

    async def submit(
        self,
        request: Request,
        *,
        request_id: str,
        deadline_s: float | None = None,
        preview_every: int | None = None,
        priority: int = 0,
    ) -> RemoteDrawing:
        """See `EngineClient`.

        Raises:
            EngineLost: Two replicas died before one took it.
        """
        plan = self._planner.plan(request, self._limits)
        steps = plan.solver.num_steps * request.num_images_per_prompt
        order = Order(request, "", request_id, deadline_s, preview_every, priority)
        drawing = RemoteDrawing(self, order, await self._stored(request), steps)
        await drawing.begin()
        return drawing

    def num_tokens(self, prompt: str) -> tuple[int, int]:
        """See `EngineClient`."""
        tokenizer = self._described.tokenizer
        return tokenizer.num_tokens(prompt), tokenizer.max_length

    async def forget(self, fingerprint: str, tenant: str) -> None:
        """See `EngineClient`. A replica that does not answer keeps its table until it is full."""
        if self._storage is not None:
            await asyncio.to_thread(self._storage.remove, fingerprint, tenant)
        with contextlib.suppress(TimeoutError, RayError, RayServeException):
            broadcast = self._handle.broadcast("forget", fingerprint, tenant)
            await broadcast.results_async(timeout_s=_GRACE_S, return_exceptions=True)

    def fault(self) -> None:
        """See `EngineClient`: Ray replaces replicas that fail."""

    def load(self) -> Load:
        """See `EngineClient`. Of all replicas, a second old at most while they are few."""
        return self._watch.load()

    def store_stats(self) -> StoreStats:
        """See `EngineClient`. Of all replicas, those that are gone too."""
        return self._watch.store_stats()

    async def close(self, *, drain_s: float) -> None:
        """See `EngineClient`. The replicas are Ray's to end."""
        await asyncio.to_thread(self._watch.close)

    def stream(self, order: Order, subject: Subject | None) -> Any:
        """Send a request; a response whose items are what the replica tells."""
        key = ""
        if subject is not None:
            whose = f"{order.request.tenant}\n{subject.fingerprint}"
            key = hashlib.sha256(whose.encode()).hexdigest()[:32]
        handle = self._handle.options(method_name="draw", stream=True, session_id=key)
        return handle.remote(order)

    async def _stored(self, request: Request) -> bool:
        """Whether replicas can fetch the subject of a request."""
        subject = request.subject
        if subject is None or self._storage is None or subject.tables:
            return False
        await asyncio.to_thread(self._storage.put, subject, request.tenant)
        return True

    async def _call(self, method: str, *args: Any) -> Any:
        """A method that may be called again: on another replica where the first one died."""
        for is_last in (False, True):
            response = self._handle.options(method_name=method).remote(*args)
            try:
                return await asyncio.wait_for(response, _CALL_S)
            except TimeoutError:
                response.cancel()
                raise EngineLost(f"no replica answered within {_CALL_S:g} s") from None
            except (RayError, RayServeException) as error:
                if is_last or not _is_loss(error):
                    raise_translated(error, self.load())
        raise AssertionError("not reached")


class RemoteDrawing:
    """A request that a replica draws.

    Args:
        engine: That sends it.
        order: As it is sent, but for its subject.
        is_stored: The replica fetches the subject.
        total_steps: Of all its pictures.
    """

    def __init__(
        self, engine: RemoteEngine, order: Order, is_stored: bool, total_steps: int
    ) -> None:
        """Nothing is sent yet."""
        self._engine, self._order, self._is_stored = engine, order, is_stored
        self._progress = Progress(0, total_steps, None, has_begun=False, is_done=False)
        self._begun = time.monotonic()
        self._response: Any = None
        self._retries = 1
        self._is_cancelled = False

    async def begin(self) -> None:
        """Send it, until a replica has taken it.

        Raises:
            BootPIGError: It was not taken.
        """
        while True:
            self._send()
            try:
                self._progress = (await self._next()).progress
                return
            except _AgainError:
                continue
            except asyncio.CancelledError:  # its caller left: nobody else knows of it yet
                self.cancel()
                raise

    async def events(self) -> AsyncIterator[Event]:
        """See `Drawing`."""
        try:
            while True:
                try:
                    told = await self._next()
                except _AgainError:
                    await self.begin()
                    continue
                self._progress = told.progress
                event = told.event
                if isinstance(event, StepEvent):
                    event = replace(event, _cancel=self.cancel)
                if event is not None:
                    yield event
                if isinstance(event, DoneEvent):
                    return
        finally:
            self._progress = replace(self._progress, is_done=True)
            self._response.cancel()

    def cancel(self) -> None:
        """See `Drawing`."""
        self._is_cancelled = True
        if self._response is not None:
            self._response.cancel()

    def progress(self) -> Progress:
        """See `Drawing`."""
        return self._progress

    def _send(self) -> None:
        order, request = self._order, self._order.request
        deadline_s = None if order.deadline_s is None else max(1e-3, self._left_s())
        if self._is_stored and request.subject is not None:
            fingerprint = request.subject.fingerprint
            light = replace(request, subject=None)
            order = replace(order, request=light, subject=fingerprint, deadline_s=deadline_s)
        else:
            order = replace(order, request=_without_pixels(request), deadline_s=deadline_s)
        self._response = self._engine.stream(order, request.subject)

    async def _next(self) -> Told:
        """What the replica tells next.

        Raises:
            _AgainError: It is to be sent again.
            BootPIGError: What it failed with.
        """
        late_s = None if self._order.deadline_s is None else self._left_s() + _GRACE_S
        try:
            told: Told = await asyncio.wait_for(anext(self._response), late_s)
            return told
        except TimeoutError:
            self._response.cancel()
            raise DeadlineExceeded(
                f"the request ran out of its {self._order.deadline_s:g} s; its replica is silent"
            ) from None
        except StopAsyncIteration:
            raise EngineLost("the replica ended the request without a result") from None
        except (RayError, RayServeException) as error:
            if self._is_cancelled or isinstance(error, TaskCancelledError):
                raise Cancelled("the request was cancelled") from error
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, SubjectMissing) and self._is_stored:
                self._is_stored = False  # from now on it is sent along
                raise _AgainError from error
            if _is_loss(error) and self._retries and not self._progress.done_steps:
                self._retries -= 1
                logger.warning("a replica died, the request is sent to another: %s", error)
                raise _AgainError from error
            raise_translated(error, self._engine.load())

    def _left_s(self) -> float:
        return (self._order.deadline_s or 0.0) - (time.monotonic() - self._begun)


class _AgainError(Exception):
    """The request is to be sent again."""


@dataclass(frozen=True)
class _Known:
    """What plans read of a backend."""

    spec: PairSpec
    name: str
    device: str


def raise_translated(error: RayError | RayServeException, load: Load) -> NoReturn:
    """Raise what a caller should hear of an error of Ray's.

    Raises:
        BootPIGError: What the replica raised, or what Ray's error means.
    """
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, BootPIGError):
        raise cause
    if isinstance(error, BackPressureError):
        wait_s = max(1.0, load.expected_wait_s)
        raise EngineFull("too many requests wait for a replica", wait_s) from error
    if _is_loss(error):
        raise EngineLost("the replica that drew the request has died; send it again") from error
    raise error


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that a replica is gone, rather than what went wrong in it."""
    return isinstance(error, RayError | RayServeException) and not isinstance(
        error, RayTaskError | BackPressureError | TaskCancelledError
    )


def _without_pixels(request: Request) -> Request:
    """Reference images in full are of no use to a replica: latents are what it reads."""
    subject = request.subject
    if subject is None or subject.pixels is None:
        return request
    return replace(request, subject=replace(subject, pixels=None))
