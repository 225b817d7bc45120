"""Engine: what everything that draws submits to.

A call, threads, a stream, a server: whatever asks gets a `Job` here. The loop runs on the thread
that waits for it, or between `start` and `close` on one of its own. Threads that wait at once take
turns at running it, each for the requests of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Self, TypedDict, Unpack

from bootpig_rt.backends.base import Backend, Decoder
from bootpig_rt.engine.events import DoneEvent, Event, OnEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.loop import Loop
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.plan import Plan, Planner
from bootpig_rt.request import GenerationResult, Request, Timings
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer


class JobOptions(TypedDict, total=False):
    """Arguments of `Engine.submit` beside the request; see there."""

    on_event: OnEvent | None
    preview_every: int | None
    deadline_s: float | None
    priority: int
    request_id: str


class Engine:
    """Continuous batching over one backend. Made by `Pipeline`.

    Every method may be called from any thread.

    Args:
        backend: Draws.
        tokenizer: Of the pair.
        store: Keeps reference tables.
        max_batch: Pictures that are drawn at once; no more than the backend takes.
        options: How many may wait, and what a request may ask for.
        decoder: What makes its pictures of latents; one of the backend's.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        store: SubjectStore,
        *,
        max_batch: int = 8,
        options: EngineOptions | None = None,
        decoder: Decoder = "full",
    ) -> None:
        """Nothing runs yet."""
        self.max_batch = min(max_batch, backend.spec.max_batch or max_batch)
        self.planner = Planner(backend, store.options, decoder=decoder)
        self._tokenizer = tokenizer
        self._loop = Loop(
            backend,
            tokenizer,
            store,
            max_batch=self.max_batch,
            options=EngineOptions() if options is None else options,
            decoder=decoder,
        )

    @property
    def options(self) -> EngineOptions:
        """How many may wait, what a request may ask for, and who watches; may be changed."""
        return self._loop.options

    @options.setter
    def options(self, options: EngineOptions) -> None:
        self._loop.options = options

    # Asking

    def submit(
        self,
        request: Request,
        *,
        on_event: OnEvent | None = None,
        preview_every: int | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
        request_id: str = "",
    ) -> Job:
        """Take a request. It begins with a step that has room for it.

        Args:
            request: What to draw.
            on_event: Hears of each launch of its pass and of each of its steps, on the thread that
                runs the engine; what it raises ends the request.
            preview_every: Steps between events that have previews; None for none.
            deadline_s: Seconds from now in which it must be done.
            priority: Higher ones begin first.
            request_id: The caller's name for it.

        Raises:
            SubjectMismatch: A subject of another pair.
            ParameterError: Not for this pair, or more than the backend, the budget for tables or
                the limits take; says what would do.
            EngineFull: Too many wait already; it may be tried again.
        """
        plans = self._plans(request)
        job = Job(
            request,
            plans,
            on_event=on_event,
            preview_every=preview_every,
            deadline_s=deadline_s,
            priority=priority,
            request_id=request_id,
        )
        self._loop.add([job])
        return job

    def submit_all(
        self, requests: Sequence[Request], *, timings: Timings, on_event: OnEvent | None = None
    ) -> list[Job]:
        """Take the requests of one call: all of them or none. They share its timings."""
        told = None if on_event is None else _CallEvents(on_event)
        jobs: list[Job] = []
        for request in requests:
            jobs.append(Job(request, self._plans(request), timings=timings))
            if told is not None:
                jobs[-1].on_event = told.of(jobs[-1])
        self._loop.add(jobs)
        return jobs

    async def asubmit(self, request: Request, **options: Unpack[JobOptions]) -> GenerationResult:
        """`submit`, and its result, for `async` code; cancelling the task cancels the request.

        Raises:
            BootPIGError: As `submit`, or what the request failed with.
        """
        return await asyncio.wrap_future(self.submit(request, **options))

    async def stream(self, request: Request, **options: Unpack[JobOptions]) -> AsyncIterator[Event]:
        """The events of a request as they come, a `DoneEvent` last; leaving early cancels it.

        Args:
            request: What to draw.
            **options: As of `submit`; an `on_event` hears of each event first.

        Raises:
            BootPIGError: As `submit`, or what the request failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        on_event = options.get("on_event")

        def tell(event: Event | None) -> None:
            if on_event is not None and event is not None:
                on_event(event)
            loop.call_soon_threadsafe(events.put_nowait, event)

        options["on_event"] = tell
        job = self.submit(request, **options)
        job.add_done_callback(lambda _: tell(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield DoneEvent(job.result())
        finally:
            job.cancel()

    @property
    def is_served(self) -> bool:
        """It runs on a thread of its own."""
        return self._loop.is_served

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        return len(self._loop.waiting())

    @property
    def num_running(self) -> int:
        """Pictures between their first step and their last."""
        return len(self._loop.running())

    def position(self, job: Job) -> int | None:
        """How many pictures wait ahead of a job's first waiting one; None where none waits."""
        ahead = [picture.job for picture in self._loop.waiting()]
        return ahead.index(job) if job in ahead else None

    def expected_wait_s(self) -> float:
        """Until what waits now has begun, by the pace of the last launches."""
        return self._loop.expected_wait_s()

    # Running

    def start(self) -> Self:
        """Run on a thread of its own from now on, until `close`.

        Raises:
            ParameterError: It does already.
        """
        self._loop.start()
        return self

    def close(self, *, drain: bool = True) -> None:
        """End the engine's own thread.

        Args:
            drain: Draw what was submitted first; otherwise it is cancelled.
        """
        self._loop.close(drain=drain)

    def __enter__(self) -> Self:
        """Started by `Pipeline.serve`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Draw what was submitted, unless an error passes by."""
        self.close(drain=kind is None)

    def drive(self, jobs: Sequence[Job]) -> None:
        """Return when these jobs are done; run the engine meanwhile if nobody else does.

        An interrupt such as Ctrl-C goes through; the pictures stay as they were.
        """
        self._loop.drive(jobs)

    def draw(
        self,
        requests: Sequence[Request],
        *,
        timings: Timings | None = None,
        on_event: OnEvent | None = None,
    ) -> list[GenerationResult]:
        """`submit_all`, `drive`, and the results of all requests, or of none."""
        timings = Timings() if timings is None else timings
        jobs = self.submit_all(requests, timings=timings, on_event=on_event)
        try:
            self.drive(jobs)
            return [job.result() for job in jobs]
        except BaseException:  # one failed, or Ctrl-C: nobody will ask for the others
            for job in jobs:
                job.cancel()
            raise

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False where nothing could be done."""
        return self._loop.step()

    def _plans(self, request: Request) -> list[Plan]:
        plan = self.planner.plan(request, self.options.limits)
        plans = plan.of_pictures(request.num_images_per_prompt)
        self._tokenizer.tell_cut(request.prompt, request.negative_prompt)
        return plans


class _CallEvents:
    """Events of the jobs of one call, counted over all of them."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._jobs: list[Job] = []

    def of(self, job: Job) -> OnEvent:
        """What a job tells, as a part of the call."""
        first = sum(len(one.plans) for one in self._jobs)
        self._jobs.append(job)

        def tell(event: Event) -> None:
            if isinstance(event, StepEvent):
                event = replace(
                    event,
                    done=sum(one.done_steps for one in self._jobs),
                    total=sum(one.total_steps for one in self._jobs),
                    pictures=tuple(first + number for number in event.pictures),
                )
            self._on_event(event)

        return tell
