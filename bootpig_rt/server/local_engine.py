"""LocalEngine: the engine client of a pipeline in this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from PIL import Image

from bootpig_rt.engine.events import DoneEvent, Event, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.plan import MAX_SIZE_FACTOR
from bootpig_rt.errors import EngineLost
from bootpig_rt.images.picture import ImageSource
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import GenerationResult, Request
from bootpig_rt.server.engine_client import Load, ModelFacts, Progress
from bootpig_rt.server.heartbeat import Heartbeat
from bootpig_rt.storage.stats import StoreStats

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ENCODERS = 2
"""Threads that encode references: the backend is shared with the steps."""

_FEW_STEPS = 12

_GRACE_S = 2.0
"""A late request ends with the step that it is in; a longer one is not waited for."""

_RESTART_S = 5.0
"""When a process that failed is likely to be there again."""

_MOST_UNREAD_PREVIEWS = 4
"""Of one request. A preview is as large as its picture, and there may be hundreds of them."""


class UnreadEvents:
    """Events on their way to a reader who may be slow: of those that wait few hold previews."""

    def __init__(self) -> None:
        """None yet."""
        self._events: deque[Event | None] = deque()
        self._is_news = asyncio.Event()

    def put(self, event: Event | None) -> None:
        """Add one; where too many have previews, the oldest of those loses them."""
        self._events.append(event)
        self._is_news.set()
        if isinstance(event, StepEvent) and event.previews is not None:
            shown = [
                (at, one)
                for at, one in enumerate(self._events)
                if isinstance(one, StepEvent) and one.previews is not None
            ]
            for at, one in shown[:-_MOST_UNREAD_PREVIEWS]:
                self._events[at] = replace(one, previews=None)

    async def get(self) -> Event | None:
        """The next one, when it is there."""
        while not self._events:
            self._is_news.clear()
            await self._is_news.wait()
        return self._events.popleft()


class LocalDrawing:
    """A job of an engine in this process."""

    def __init__(self, client: LocalEngine, job: Job, events: UnreadEvents) -> None:
        """`events` ends with None."""
        self._client, self._job, self._events = client, job, events

    async def events(self) -> AsyncIterator[Event]:
        """See `Drawing`."""
        while (event := await self._next()) is not None:
            yield event
        try:
            result = self._job.result()
        except Exception as error:  # of any runtime
            fault = self._client.fault()
            if fault is None:
                raise
            raise EngineLost(f"the engine was lost: {fault}", _RESTART_S) from error
        yield DoneEvent(result)

    async def _next(self) -> Event | None:
        """The next event; None where there is no other, or it has come to nothing in time."""
        deadline = self._job.deadline
        left_s = None if deadline is None else deadline - time.monotonic() + _GRACE_S
        try:
            async with asyncio.timeout(left_s):
                return await self._events.get()
        except TimeoutError:  # the engine looks at deadlines between steps, and this one is long
            self._job.end_late()
            return None

    def cancel(self) -> None:
        """See `Drawing`."""
        self._job.cancel()

    def progress(self) -> Progress:
        """See `Drawing`."""
        job = self._job
        return Progress(
            job.done_steps,
            job.total_steps,
            None if job.has_begun or job.done() else self._client.engine.position(job),
            job.has_begun,
            job.done(),
        )


class LocalEngine:
    """A pipeline in this process, its engine on a thread of its own.

    Args:
        name: By which requests ask for it.
        pipeline: Not served yet; closed with the client.
        options: How many may wait, and what one request may ask for.
        max_image_pixels: Of a reference image.
        hang_s: A launch that takes longer is a hang.
    """

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        options: EngineOptions,
        *,
        max_image_pixels: int,
        hang_s: float,
    ) -> None:
        """Start the engine."""
        self._heartbeat = Heartbeat(hang_s)
        self.pipeline, self._max_image_pixels = pipeline, max_image_pixels
        self.engine = pipeline.serve(options)
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="bootpig-encode")
        spec = pipeline.spec
        config = spec.config
        self.facts = ModelFacts(
            name=name,
            fingerprint=spec.fingerprint,
            size_px=config.sample_size_px,
            size_multiple_px=spec.size_multiple_px,
            max_references=min(
                config.max_references,
                spec.max_references or config.max_references,
                options.limits.num_references or config.max_references,
            ),
            num_inference_steps=min(config.default_steps, spec.max_steps or config.default_steps),
            image_guidance_scale=config.image_guidance_scale,
            text_guidance_scale=config.text_guidance_scale,
            solver=config.default_solver,
            merge=config.merge,
            reference_schedule=str(ReferenceSchedule.default_for(config.reference_timestep)),
            is_few_step=config.default_steps <= _FEW_STEPS
            and config.image_guidance_scale == config.text_guidance_scale == 1.0,
            backend=pipeline.backend_name,
            runtime=spec.runtime,
            precision=spec.precision,
            device=pipeline.device,
            max_batch=pipeline.max_batch,
            max_side_px=min(
                MAX_SIZE_FACTOR * config.sample_size_px,
                (spec.sides_px or (0, 1 << 20))[1],
                options.limits.side_px or 1 << 20,
            ),
            controls=tuple(control.kind for control in spec.controls),
        )

    async def prepare(
        self, images: Sequence[ImageSource], *, warnings: list[str] | None = None
    ) -> list[Image.Image]:
        """See `EngineClient`."""
        return await self._encoding(
            lambda: self.pipeline.prepare_references(
                images,
                max_image_pixels=self._max_image_pixels,
                warn=([] if warnings is None else warnings).append,
            )
        )

    async def encode(
        self, prepared: Sequence[Image.Image], reference_prompt: str, *, noise_seed: int
    ) -> Subject:
        """See `EngineClient`."""
        return await self._encoding(
            lambda: self.pipeline.encode_prepared(prepared, reference_prompt, noise_seed=noise_seed)
        )

    def check_subject(self, subject: Subject) -> None:
        """See `EngineClient`."""
        subject.check_for(self.pipeline.spec)

    async def submit(
        self,
        request: Request,
        *,
        request_id: str,
        deadline_s: float | None = None,
        preview_every: int | None = None,
        priority: int = 0,
    ) -> LocalDrawing:
        """See `EngineClient`."""
        loop, events = asyncio.get_running_loop(), UnreadEvents()

        def tell(event: Event | None) -> None:
            self._heartbeat.beats()
            # A loop that is closed has nobody left to tell.
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put, event)

        # Planning takes about a millisecond, and may wait for the engine's lock as long.
        self._heartbeat.begins()
        try:
            job = self.engine.submit(
                request,
                on_event=tell,
                preview_every=preview_every,
                deadline_s=deadline_s,
                priority=priority,
                request_id=request_id,
            )
        except BaseException:
            self._heartbeat.ends()
            raise
        job.add_done_callback(self._see_end)
        job.add_done_callback(lambda _: tell(None))
        return LocalDrawing(self, job, events)

    def num_tokens(self, prompt: str) -> tuple[int, int]:
        """See `EngineClient`."""
        return self.pipeline.num_tokens(prompt)

    async def forget(self, fingerprint: str, tenant: str) -> None:
        """See `EngineClient`."""
        await asyncio.to_thread(self.pipeline.store.forget_subject, fingerprint, tenant)

    def load(self) -> Load:
        """See `EngineClient`."""
        engine = self.engine
        return Load(engine.num_waiting, engine.num_running, engine.expected_wait_s())

    def store_stats(self) -> StoreStats:
        """See `EngineClient`."""
        return self.pipeline.store.stats()

    def fault(self) -> str | None:
        """See `EngineClient`."""
        return self._heartbeat.fault()

    async def close(self, *, drain_s: float) -> None:
        """See `EngineClient`."""
        ends = asyncio.get_running_loop().time() + drain_s
        while asyncio.get_running_loop().time() < ends:
            load = self.load()
            if not load.waiting and not load.running:
                break
            await asyncio.sleep(0.02)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.pipeline.close)

    def _see_end(self, job: Future[GenerationResult]) -> None:
        self._heartbeat.ends(None if job.cancelled() else job.exception())

    async def _encoding(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._encoders, work)
