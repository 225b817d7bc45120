"""Engine: what everything that draws submits to, and who runs its loop.

A call, threads, a stream, a server: whatever asks gets a `Job` here. The loop runs on the thread
that waits for it, or between `start` and `close` on one of its own. Threads that wait at once take
turns at running it, each for the requests of all.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Self, TypedDict, Unpack

from bootpig_rt.backends.base import Backend
from bootpig_rt.engine.batch import Picture
from bootpig_rt.engine.events import DoneEvent, Event, Launch, OnEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.loop import LOOK_AGAIN_S, Loop
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.plan import Plan, Planner
from bootpig_rt.errors import EngineFull, ParameterError
from bootpig_rt.request import GenerationResult, Request, Timings
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


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
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        store: SubjectStore,
        *,
        max_batch: int = 8,
        options: EngineOptions | None = None,
    ) -> None:
        """Nothing runs yet."""
        self.max_batch = min(max_batch, backend.spec.max_batch or max_batch)
        self.options = EngineOptions() if options is None else options
        self.planner = Planner(backend, store.options)
        self._tokenizer = tokenizer
        # Guards who waits, who runs and who drives; told whenever one of them changes.
        self._changed = threading.Condition(threading.RLock())
        self._loop = Loop(
            backend,
            tokenizer,
            store,
            self.planner,
            max_batch=self.max_batch,
            changed=self._changed,
            launched=self._launched,
        )
        self._driver: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False

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
        self._admit([job])
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
        self._admit(jobs)
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
        return self._thread is not None

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        with self._changed:
            return len(self._loop.queue)

    @property
    def num_running(self) -> int:
        """Pictures between their first step and their last."""
        with self._changed:
            return len(self._loop.running())

    def position(self, job: Job) -> int | None:
        """How many pictures wait ahead of a job's first waiting one; None where none waits."""
        with self._changed:
            ahead = [picture.job for picture in self._loop.queue]
        return ahead.index(job) if job in ahead else None

    def expected_wait_s(self) -> float:
        """Until what waits now has begun, by the pace of the last launches."""
        with self._changed:
            steps = sum(picture.plan.solver.num_steps for picture in self._loop.queue)
        return max(0.05, steps * self._loop.launch_s / self.max_batch)

    # Running

    def start(self) -> Self:
        """Run on a thread of its own from now on, until `close`.

        Raises:
            ParameterError: It does already.
        """
        with self._changed:
            if self._thread is not None:
                raise ParameterError("the engine is being served already; close it first")
            self._is_closing = False
            self._thread = threading.Thread(target=self._serve, name="bootpig-engine", daemon=True)
            self._thread.start()
        return self

    def close(self, *, drain: bool = True) -> None:
        """End the engine's own thread.

        Args:
            drain: Draw what was submitted first; otherwise it is cancelled.
        """
        with self._changed:
            thread = self._thread
            if not drain:
                for job in {picture.job for picture in self._loop.pictures()}:
                    job.cancel()
            self._is_closing = True
            self._loop.tell()
        if thread is not None:
            thread.join()
        with self._changed:
            self._thread = None
            self._is_closing = False

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
        me = threading.current_thread()
        while not all(job.done() for job in jobs):
            with self._changed:
                if self._driver not in (None, me):
                    self._changed.wait_for(
                        lambda: self._driver is None or all(job.done() for job in jobs)
                    )
                    continue
                before, self._driver = self._driver, me
            try:
                while not all(job.done() for job in jobs):
                    self._step_or_wait()
            finally:
                with self._changed:
                    self._driver = before  # a callback may drive inside of a step
                    self._loop.tell()

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False where nothing could be done."""
        return self._loop.step()

    def _serve(self) -> None:
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._driver is None)
            self._driver = me
        try:
            while not self._is_closing or any(True for _ in self._loop.pictures()):
                try:
                    self._step_or_wait()
                except Exception as error:  # the loop outlives what a step did not foresee
                    logger.exception("a step failed in a way that was not foreseen")
                    for picture in self._loop.pictures():
                        picture.job.fail(error)
        finally:
            with self._changed:
                self._driver = None
                self._loop.tell()

    def _step_or_wait(self) -> None:
        """Where nothing could be done, wait for news: a request, a cancellation, a table."""
        seen = self._loop.num_changes
        if self.step():
            return
        with self._changed:
            is_waited_for = len(self._loop.queue) > 0
            self._changed.wait_for(
                lambda: self._loop.num_changes != seen, LOOK_AGAIN_S if is_waited_for else None
            )

    def _launched(self, launch: Launch) -> None:
        if self.options.on_launch is None:
            return
        try:
            self.options.on_launch(launch)
        except Exception:  # who watches has no part in what is drawn
            logger.exception("on_launch failed; the engine goes on")

    def _plans(self, request: Request) -> list[Plan]:
        plan = self.planner.plan(request, self.options.limits)
        self._tokenizer.tell_cut(request.prompt, request.negative_prompt)
        if request.num_images_per_prompt == 1:
            return [plan]
        return [replace(plan, request=one) for one in request.of_pictures()]

    def _admit(self, jobs: Sequence[Job]) -> None:
        pictures = [
            Picture(job, number, plan) for job in jobs for number, plan in enumerate(job.plans)
        ]
        with self._changed:
            if self._is_closing:
                raise EngineFull("the engine is closing and takes no more requests", 1.0)
            room = self.options.max_waiting - len(self._loop.queue)
            if len(pictures) > room:
                wait_s = self.expected_wait_s()
                raise EngineFull(
                    f"{len(pictures)} pictures, but {room} of {self.options.max_waiting} places to "
                    f"wait are free; ask for fewer, or again in {wait_s:.1f} s",
                    wait_s,
                )
            self._loop.queue.add(pictures)
            self._loop.has_deadlines |= any(job.deadline is not None for job in jobs)
            self._loop.tell()
        for job in jobs:
            job.add_done_callback(lambda _: self._loop.tell())


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
