"""Engine: the one loop that draws. Requests join between two steps, and leave when they are done.

Whatever asks submits here: a call, threads, a stream, a server. Each launch takes all running
pictures of one size and merge one step further; launches alternate where there are several.
Tenants take turns, one picture at a time. What a picture becomes does not depend on its company,
and what goes wrong with one is its own loss.

The engine runs on the thread that waits for it, or between `start` and `close` on its own. Threads
that wait at once take turns at running it, each for the requests of all.

The table of a new subject is made between two steps, in launches of `rows_per_launch` rows. After
each of them the running pictures make a step, so they wait for one such launch and never for a
whole pass. A table that is read from disk, or that somebody else is making, is waited for by its
own pictures alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Self, TypeAlias

import numpy as np
from PIL.Image import Image

from bootpig_rt.backends.base import Backend, FloatArray
from bootpig_rt.backends.finite import check_finite
from bootpig_rt.engine.batch import Batch, Group, Picture, texts_of
from bootpig_rt.engine.events import DoneEvent, Event, OnEvent, ReferenceEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.memory import TableUse, bytes_held
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.plan import Plan, Planner
from bootpig_rt.engine.preview import fit_preview, preview
from bootpig_rt.engine.queue import Queue
from bootpig_rt.engine.text_states import TextStates
from bootpig_rt.errors import Cancelled, EngineFull, ParameterError
from bootpig_rt.images.picture import to_pil
from bootpig_rt.reference.reference_pass import make_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.request import GenerationResult, Request, Timings
from bootpig_rt.storage.store import Claim, SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.02
"""How soon a table that somebody else is making is looked for again."""

_Whose: TypeAlias = tuple[str, ReferenceKey]
"""Tenant and key of a table."""


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
        self._backend, self._tokenizer, self._store = backend, tokenizer, store
        self._texts = TextStates(backend, tokenizer)
        self._queue = Queue()
        self._batches: OrderedDict[Group, Batch] = OrderedDict()
        self._lookups: dict[_Whose, Future[ReferenceTable | Claim | None]] = {}
        self._look_again: dict[_Whose, float] = {}
        self._making: set[_Whose] = set()
        self._has_deadlines = False
        self._preview_map: FloatArray | None = None
        self._launch_s = 0.0
        # Guards who waits, who runs and who drives; told whenever one of them changes.
        self._changed = threading.Condition(threading.RLock())
        self._num_changes = 0
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

    async def asubmit(self, request: Request, **options: object) -> GenerationResult:
        """`submit`, and its result, for `async` code; cancelling the task cancels the request.

        Raises:
            BootPIGError: As `submit`, or what the request failed with.
        """
        return await asyncio.wrap_future(self.submit(request, **options))  # type: ignore[arg-type]

    async def stream(
        self, request: Request, *, preview_every: int | None = None, **options: object
    ) -> AsyncIterator[Event]:
        """The events of a request as they come, a `DoneEvent` last; leaving early cancels it.

        Raises:
            BootPIGError: As `submit`, or what the request failed with.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def tell(event: Event | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = self.submit(
            request,
            on_event=tell,
            preview_every=preview_every,
            **options,  # type: ignore[arg-type]
        )
        job.add_done_callback(lambda _: tell(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield DoneEvent(job.result())
        finally:
            job.cancel()

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        with self._changed:
            return len(self._queue)

    @property
    def num_running(self) -> int:
        """Pictures between their first step and their last."""
        with self._changed:
            return len(self._running())

    def position(self, job: Job) -> int | None:
        """How many pictures wait ahead of a job's first waiting one; None where none waits."""
        with self._changed:
            ahead = [picture.job for picture in self._queue]
        return ahead.index(job) if job in ahead else None

    def expected_wait_s(self) -> float:
        """Until what waits now has begun, by the pace of the last launches."""
        with self._changed:
            steps = sum(picture.plan.solver.num_steps for picture in self._queue)
        return max(0.05, steps * self._launch_s / self.max_batch)

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
                for job in {picture.job for picture in self._pictures()}:
                    job.cancel()
            self._is_closing = True
            self._tell()
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
                    self._tell()

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False where nothing could be done."""
        self._leave()
        if self._queue.is_used:
            self._join()
        return self._advance()

    def _serve(self) -> None:
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._driver is None)
            self._driver = me
        try:
            while not self._is_closing or any(True for _ in self._pictures()):
                try:
                    self._step_or_wait()
                except Exception as error:  # the loop outlives what a step did not foresee
                    logger.exception("a step failed in a way that was not foreseen")
                    for picture in self._pictures():
                        picture.job.fail(error)
        finally:
            with self._changed:
                self._driver = None
                self._tell()

    def _step_or_wait(self) -> None:
        """Where nothing could be done, wait for news: a request, a cancellation, a table."""
        seen = self._num_changes
        if self.step():
            return
        with self._changed:
            is_waited_for = len(self._queue) > 0
            self._changed.wait_for(
                lambda: self._num_changes != seen, _LOOK_AGAIN_S if is_waited_for else None
            )

    def _tell(self) -> None:
        with self._changed:
            self._num_changes += 1
            self._changed.notify_all()

    def _pictures(self) -> Iterator[Picture]:
        """All that wait or run."""
        with self._changed:
            return iter([*self._queue, *self._running()])

    def _running(self) -> list[Picture]:
        """Pictures between their first step and their last."""
        return [one for batch in self._batches.values() for one in batch.pictures]

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
            room = self.options.max_waiting - len(self._queue)
            if len(pictures) > room:
                wait_s = self.expected_wait_s()
                raise EngineFull(
                    f"{len(pictures)} pictures, but {room} of {self.options.max_waiting} places to "
                    f"wait are free; ask for fewer, or again in {wait_s:.1f} s",
                    wait_s,
                )
            self._queue.add(pictures)
            self._has_deadlines |= any(job.deadline is not None for job in jobs)
            self._tell()
        for job in jobs:
            job.add_done_callback(lambda _: self._tell())

    # In

    def _join(self) -> None:
        """Let waiting pictures in until the batch or the budget is full."""
        passed: set[Picture] = set()
        skipped: set[Picture] = set()
        while self._queue.is_used and (picture := self._next(skipped, passed)) is not None:
            with self._losing([picture], "the start of a picture"):
                if not self._find_table(picture):
                    skipped.add(picture)
                    continue
                self._begin(picture)
        for picture in passed:
            picture.passed_over += 1
        if self._lookups or self._look_again:
            self._forget_lookups()

    def _next(self, skipped: set[Picture], passed: set[Picture]) -> Picture | None:
        with self._changed:
            running = self._running()
            if len(running) >= self.max_batch:
                return None
            return self._queue.next_that_fits(
                lambda picture: not running or self._fits(picture, running), skipped, passed
            )

    def _fits(self, picture: Picture, running: Sequence[Picture]) -> bool:
        """Whether the tables of all of them have room; the picture would join at step 0."""
        budget = self._store.options.budget_bytes
        if budget is None or picture.plan.table is None:
            return True
        batch = self._batches.get(picture.group)
        paces = [(one, one.joined) for one in running]
        paces.append((picture, 0 if batch is None else batch.launches))
        uses = [
            TableUse(one.job.tenant, one.plan.table, one.group, (one.group, joined))
            for one, joined in paces
            if one.plan.table is not None
        ]
        return bytes_held(uses, joins_tables=self._backend.spec.joins_tables) <= budget

    def _find_table(self, picture: Picture) -> bool:
        """Whether a picture's table is there, or is made now; False while it is on its way."""
        plan, tenant = picture.plan.table, picture.job.tenant
        if plan is None or picture.table is not None:
            return True
        whose = tenant, plan.key
        picture.table = self._store.held(plan.key, backend=self._backend, tenant=tenant)
        if picture.table is not None:
            return True
        lookup = self._lookups.get(whose)
        if lookup is None:
            if time.monotonic() < self._look_again.get(whose, 0.0):
                return False
            lookup = self._lookups[whose] = self._store.look_later(
                plan.subject,
                plan.key,
                backend=self._backend,
                tenant=tenant,
                is_resident=plan.is_resident,
            )
            lookup.add_done_callback(lambda _: self._tell())
        if not lookup.done():
            return False
        del self._lookups[whose]
        found = lookup.result()
        if found is None and whose in self._making:  # below this one: a callback drives the engine
            picture.table = self._make_table(picture, None)
            return True
        if found is None:
            self._look_again[whose] = time.monotonic() + _LOOK_AGAIN_S
            return False
        self._look_again.pop(whose, None)
        picture.table = self._make_table(picture, found) if isinstance(found, Claim) else found
        return True

    def _make_table(self, picture: Picture, claim: Claim | None) -> ReferenceTable:
        """Run the pass of a picture's table; after each launch the running pictures make a step."""
        job, plan = picture.job, picture.plan.table
        assert plan is not None
        whose = job.tenant, plan.key
        if claim is not None:
            self._making.add(whose)
        with self._changed:
            self._queue.take(picture)  # nested steps leave it alone
        job.begin()
        start = time.perf_counter()

        def after_launch(done: int, total: int) -> None:
            self._end_late([picture])
            if not job.done() and job.on_event is not None:
                job.on_event(ReferenceEvent(done, total))
            if job.done():
                raise Cancelled(f"cancelled after {done} of {total} rows of the reference pass")
            self._advance()

        try:
            table, passes = make_table(
                plan,
                backend=self._backend,
                tokenizer=self._tokenizer,
                rows_per_launch=self._store.options.rows_per_launch,
                progress=after_launch,
            )
            ms = 1e3 * (time.perf_counter() - start)
            if claim is not None:
                claim.keep(table, self._backend, ms)
        except BaseException as error:
            if claim is not None:
                claim.release()
            if not isinstance(error, Exception):
                with self._changed:  # Ctrl-C: whoever drives next begins it again
                    self._queue.add([picture])
            raise
        finally:
            if claim is not None:
                self._making.discard(whose)
        job.timings.reference_ms += ms
        job.passes += passes
        return table

    def _begin(self, picture: Picture) -> None:
        """Put a picture beside the others of its group."""
        if picture.job.done():
            return
        with self._changed:
            if picture.waits:
                self._queue.take(picture)
            batch = self._batches.setdefault(picture.group, Batch())
        if not picture.job.has_begun:
            picture.job.begin()
        self._interrupt(batch)
        picture.joined = batch.launches
        with self._changed:
            batch.pictures.append(picture)

    def _forget_lookups(self) -> None:
        """Of tables that nobody waits for any more: their claims are for others."""
        with self._changed:
            wanted = {(one.job.tenant, one.plan.table.key) for one in self._queue if one.plan.table}
        for whose in [whose for whose in self._lookups if whose not in wanted]:
            lookup = self._lookups[whose]
            if lookup.done():
                del self._lookups[whose]
                if lookup.exception() is None and isinstance(claim := lookup.result(), Claim):
                    claim.release()
        self._look_again = {w: at for w, at in self._look_again.items() if w in wanted}

    # A step

    def _advance(self) -> bool:
        """One launch of the batch whose turn it is; False where nothing runs."""
        with self._changed:
            if not self._batches:
                return False
            group, batch = next(iter(self._batches.items()))
            self._batches.move_to_end(group)
        self._launch(batch)
        self._leave()
        return True

    def _launch(self, batch: Batch) -> None:
        """One step of one batch, and what its callers hear of it."""
        start = time.perf_counter()
        timestep = None
        with self._losing(batch.pictures, "a launch", batch):
            if batch.run is None:
                texts = self._texts.of(texts_of(batch.pictures))
                ms = 1e3 * (time.perf_counter() - start)
                for timings in _timings_of(batch.pictures):
                    timings.text_ms += ms
                start = time.perf_counter()
                batch.begin(self._backend, texts)
            timestep = batch.step()
        if timestep is None:
            return
        took_s = time.perf_counter() - start
        for timings in _timings_of(batch.pictures):  # each call has waited for all of it
            timings.denoise_ms += 1e3 * took_s
        self._launch_s = took_s if not self._launch_s else 0.9 * self._launch_s + 0.1 * took_s
        told = []
        for job in {id(picture.job): picture.job for picture in batch.pictures}.values():
            mine = [i for i, picture in enumerate(batch.pictures) if picture.job is job]
            job.done_steps += len(mine)
            if job.on_event is not None and not job.done():
                first = batch.pictures[mine[0]]
                with self._losing([first], "a preview"):
                    event = self._step_event(batch, job, mine, timestep)
                    told.append((first, job.on_event, event))
        if batch.is_over:
            self._interrupt(batch)
        for first, on_event, event in told:  # last of all: a callback may drive the engine itself
            with self._losing([first], "a callback"):
                on_event(event)

    def _step_event(self, batch: Batch, job: Job, mine: Sequence[int], timestep: int) -> StepEvent:
        pictures, estimate = [batch.pictures[i] for i in mine], batch.estimate()
        every, done = job.preview_every, pictures[0].step + batch.done
        previews = None
        if every is not None and done % every == 0:
            if self._preview_map is None:
                self._preview_map = fit_preview(self._backend)
            latents, fitted = estimate(), self._preview_map
            previews = tuple(
                preview(latents[i], fitted, one.plan.width_px, one.plan.height_px)
                for i, one in zip(mine, pictures, strict=True)
            )

        def decode() -> list[Image]:
            latents = check_finite(estimate()[list(mine)], f"step {done}")
            return to_pil(self._backend.decode(latents))

        return StepEvent(
            done=job.done_steps,
            total=job.total_steps,
            timestep=timestep,
            pictures=tuple(one.number for one in pictures),
            previews=previews,
            _decode=decode,
            _cancel=job.cancel,
        )

    def _interrupt(self, batch: Batch) -> None:
        """End the run of a batch: its pictures get their states and may be joined anew."""
        if batch.run is not None:
            with self._losing(batch.pictures, "a launch", batch):
                batch.close()

    @contextmanager
    def _losing(
        self, pictures: Sequence[Picture], what: str, batch: Batch | None = None
    ) -> Iterator[None]:
        """What goes wrong inside is the loss of these pictures alone; the engine goes on.

        Pictures that share a launch that failed go on one by one, from where its run began: so who
        made it fail is the only one to lose.
        """
        try:
            yield
        except Exception as error:  # of any runtime or callback; who asks for the pictures gets it
            together = [one for one in pictures if not one.job.done()]
            if batch is not None:
                batch.drop()
                if len(together) > 1:
                    logger.warning("%s failed; its pictures go on one by one: %s", what, error)
                    self._part(batch)
                    return
            for picture in together:
                logger.warning("%s failed, a picture is lost: %s", what, error)
                picture.job.fail(error)
        except BaseException:  # Ctrl-C is for whoever drives; the pictures stay where they were
            if batch is not None:
                batch.drop()
            raise

    def _part(self, batch: Batch) -> None:
        with self._changed:
            pictures, batch.pictures = batch.pictures, []
            for picture in pictures:
                picture.is_apart = True
                alone = self._batches[picture.group] = Batch()
                alone.pictures.append(picture)
                picture.joined = 0

    # Out

    def _leave(self) -> None:
        """Decode the pictures that are done; drop those whose job was cancelled or has failed."""
        if self._has_deadlines:
            self._end_late(self._pictures())
        for batch in list(self._batches.values()):
            are_gone = [picture.job.done() for picture in batch.pictures]
            if any(are_gone) and not all(are_gone):
                self._interrupt(batch)
            done = [
                one
                for one in batch.pictures
                if one.step == one.plan.solver.num_steps and not one.job.done()
            ]
            if done:
                self._finish(done)
            with self._changed:
                batch.pictures = [
                    one for one in batch.pictures if not one.job.done() and one not in done
                ]
        with self._changed:
            for group in [group for group, batch in self._batches.items() if not batch.pictures]:
                del self._batches[group]

    def _end_late(self, pictures: Iterable[Picture]) -> None:
        """End the jobs whose deadline is past."""
        now = time.monotonic()
        for job in {id(one.job): one.job for one in pictures if one.job.deadline}.values():
            if job.deadline is not None and job.deadline <= now:
                job.end_late()

    def _finish(self, pictures: Sequence[Picture]) -> None:
        """Decode pictures of one size: together, and one by one where that fails."""
        latents = np.stack([picture.state[0] for picture in pictures])
        start = time.perf_counter()
        try:
            check_finite(latents, f"{max(one.step for one in pictures)} steps")
            images = to_pil(check_finite(self._backend.decode(latents), "the image decoder"))
        except Exception as error:  # of any runtime
            if len(pictures) > 1:
                for picture in pictures:
                    self._finish([picture])
            else:
                logger.warning("decoding failed, a picture is lost: %s", error)
                pictures[0].job.fail(error)
            return
        ms = 1e3 * (time.perf_counter() - start)
        for timings in _timings_of(pictures):
            timings.decode_ms += ms
        for picture, image in zip(pictures, images, strict=True):
            picture.job.put(picture.number, image, self.planner.parameters(picture.plan))


def _timings_of(pictures: Iterable[Picture]) -> Iterable[Timings]:
    """Of the calls that pictures are of, each once."""
    return {id(one.job.timings): one.job.timings for one in pictures}.values()


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
