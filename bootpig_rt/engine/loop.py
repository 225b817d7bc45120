"""Loop: who drives, and what happens in a step: pictures join, a batch is launched, pictures leave.

Each launch takes all running pictures of one size and merge one step further; launches alternate
where there are several. Tenants take turns, one picture at a time. What a picture becomes does not
depend on its company, and what goes wrong with one is its own loss.

The table of a new subject is made between two steps, in launches of `rows_per_launch` rows. After
each of them the running pictures make a step, so they wait for one such launch and never for a
whole pass. A table that is read from disk, or that somebody else is making, is waited for by its
own pictures alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL.Image import Image

from bootpig_rt.backends.base import Backend, Decoder, check_finite
from bootpig_rt.engine.batch import Batch, Group, Picture
from bootpig_rt.engine.canvases import Canvases
from bootpig_rt.engine.events import Launch, ReferenceEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.preview import Previews
from bootpig_rt.engine.queue import Queue
from bootpig_rt.engine.tables import LOOK_AGAIN_S, Tables
from bootpig_rt.engine.text_states import TextStates
from bootpig_rt.errors import Cancelled, EngineFull, ParameterError
from bootpig_rt.images.picture import to_pil
from bootpig_rt.storage.store import Claim, SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_PATIENCE = 8
"""In how many steps a picture that does not fit is passed over before all others wait for it."""


class Loop:
    """The pictures that wait and run. Whoever waits for some drives it, one thread at a time.

    Args:
        backend: Draws.
        tokenizer: Of the pair.
        store: Keeps reference tables.
        max_batch: Pictures that are drawn at once.
        options: How many may wait, and who watches.
        decoder: Makes pictures of latents.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        store: SubjectStore,
        *,
        max_batch: int,
        options: EngineOptions,
        decoder: Decoder = "full",
    ) -> None:
        """Nothing runs yet."""
        self.max_batch, self.options, self._decoder = max_batch, options, decoder
        self._backend = backend
        self._texts = TextStates(backend, tokenizer)
        self._tables = Tables(backend, tokenizer, store, self.tell)
        self._canvases, self._reads_canvas = Canvases(backend), backend.spec.canvas == "read"
        self._previews = Previews(backend)
        self._queue = Queue()
        self._batches: OrderedDict[Group, Batch] = OrderedDict()
        self._has_deadlines = False
        self._launch_s = 0.0
        # Guards who waits, who runs and who drives; told whenever one of them changes.
        self._changed = threading.Condition(threading.RLock())
        self._num_changes = 0
        self._driver: threading.Thread | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def add(self, jobs: Sequence[Job]) -> None:
        """Let the pictures of jobs wait for their first step: all of them or none.

        Raises:
            EngineFull: More would wait than may.
        """
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
            self.tell()
        for job in jobs:
            job.add_done_callback(lambda _: self.tell())

    def tell(self) -> None:
        """Something changed: whoever waits looks again."""
        with self._changed:
            self._num_changes += 1
            self._changed.notify_all()

    def waiting(self) -> list[Picture]:
        """Pictures that have not begun."""
        with self._changed:
            return list(self._queue)

    def running(self) -> list[Picture]:
        """Pictures between their first step and their last."""
        with self._changed:
            return [one for batch in self._batches.values() for one in batch.pictures]

    def expected_wait_s(self) -> float:
        """Until what waits now has begun, by the pace of the last launches."""
        steps = sum(picture.plan.solver.num_steps for picture in self.waiting())
        return max(0.05, steps * self._launch_s / self.max_batch)

    # Driving

    def drive(self, jobs: Sequence[Job]) -> None:
        """Return when these jobs are done; step meanwhile if nobody else does.

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
                    self.tell()

    @property
    def is_served(self) -> bool:
        """It runs on a thread of its own."""
        return self._thread is not None

    def start(self) -> None:
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

    def close(self, *, drain: bool) -> None:
        """End the thread; draw what waits and runs first, or cancel it."""
        with self._changed:
            thread = self._thread
            if not drain:
                for job in {picture.job for picture in [*self.waiting(), *self.running()]}:
                    job.cancel()
            self._is_closing = True
            self.tell()
        if thread is not None:
            thread.join()
        with self._changed:
            self._thread = None
            self._is_closing = False

    def _serve(self) -> None:
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._driver is None)
            self._driver = me
        try:
            while not self._is_closing or self.waiting() or self.running():
                try:
                    self._step_or_wait()
                except Exception as error:  # the loop outlives what a step did not foresee
                    logger.exception("a step failed in a way that was not foreseen")
                    for picture in [*self.waiting(), *self.running()]:
                        picture.job.fail(error)
                    with self._changed:
                        if self._is_closing:
                            break
                        self._wait_for_news(self._num_changes)  # or it might fail for ever
        finally:
            with self._changed:
                self._driver = None
                self.tell()

    def _step_or_wait(self) -> None:
        """Where nothing could be done, wait for news: a request, a cancellation, a table."""
        seen = self._num_changes
        if self.step():
            return
        with self._changed:
            self._wait_for_news(seen, LOOK_AGAIN_S if len(self._queue) else None)

    def _wait_for_news(self, seen: int, timeout_s: float | None = None) -> None:
        """Return when something changed since; the lock is held."""
        self._changed.wait_for(lambda: self._num_changes != seen, timeout_s)

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False where nothing could be done."""
        self._leave()
        if self._queue.is_used:
            self._join()
        return self._advance()

    # In

    def _join(self) -> None:
        """Let waiting pictures in until the batch or the budget is full."""
        passed: set[Picture] = set()
        skipped: set[Picture] = set()
        while self._queue.is_used and (picture := self._next(skipped, passed)) is not None:
            with self._losing([picture], "the start of a picture"):
                try:
                    if self._has_table(picture):
                        self._begin(picture)
                    else:
                        skipped.add(picture)
                except Exception:
                    raise
                except BaseException:  # Ctrl-C: whoever drives next begins it again
                    with self._changed:
                        if not picture.waits and picture not in self.running():
                            self._queue.add([picture])
                    raise
        for picture in passed:
            picture.passed_over += 1
        if self._tables.sought:
            self._tables.forget(self.waiting())

    def _next(self, skipped: set[Picture], passed: set[Picture]) -> Picture | None:
        """The picture to let in next, still in its place.

        Args:
            skipped: Pictures whose table is on its way, and those that are not in step with their
                batch: others of their tenant go ahead.
            passed: Is given the pictures that do not fit: others of their tenant wait for them.
        """
        with self._changed:
            running = self.running()
            if len(running) >= self.max_batch:
                return None
            for picture in self._queue.heads(skipped):
                batch = self._batches.get(picture.group)
                if batch is not None and not batch.may_join(picture):
                    skipped.add(picture)
                    continue
                launches = 0 if batch is None else batch.launches
                if not running or self._tables.fit(picture, running, launches):
                    return picture
                passed.add(picture)
                if picture.passed_over >= _PATIENCE:
                    return None
        return None

    def _has_table(self, picture: Picture) -> bool:
        """Whether a picture's table is there, or is made now; False while it is on its way."""
        if picture.plan.table is None or picture.table is not None:
            return True
        found = self._tables.find(picture)
        if isinstance(found, Claim):
            self._make_table(picture, found)
        else:
            picture.table = found
        return picture.table is not None

    def _make_table(self, picture: Picture, claim: Claim) -> None:
        """Run the pass of a picture's table; after each launch the running pictures make a step."""
        job = picture.job
        with self._changed:
            self._queue.take(picture)  # nested steps leave it alone
        if not job.has_begun:
            job.begin()

        def after_launch(done: int, total: int) -> None:
            self._end_late([picture])
            if not job.done() and job.on_event is not None:
                job.on_event(ReferenceEvent(done, total))
            if job.done():
                raise Cancelled(f"cancelled after {done} of {total} rows of the reference pass")
            self._advance()

        picture.table = self._tables.make(picture, claim, after_launch)

    def _begin(self, picture: Picture) -> None:
        """Put a picture beside the others of its group."""
        if picture.job.done():
            return
        if not picture.job.has_begun:
            picture.job.begin()
        if picture.canvas is None and (picture.plan.canvas is not None or self._reads_canvas):
            self._canvases.set_up(picture)
        batch = self._batches.get(picture.group)
        if batch is not None:
            self._interrupt(batch)
            picture.joined = batch.launches
        with self._changed:
            if picture.waits:
                self._queue.take(picture)
            self._batches.setdefault(picture.group, batch or Batch()).pictures.append(picture)

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
        timestep = None
        with self._losing(batch.pictures, "a launch", batch):
            timestep = batch.step(self._backend, self._texts)
        if timestep is None:
            return
        self._launch_s = 0.9 * (self._launch_s or batch.step_s) + 0.1 * batch.step_s
        if self.options.on_launch is not None:
            try:
                launch = Launch(len(batch.pictures), batch.num_rows, batch.step_s)
                self.options.on_launch(launch)
            except Exception:  # who watches has no part in what is drawn
                logger.exception("on_launch failed; the engine goes on")
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
        assert batch.run is not None
        estimate, pictures = batch.run.estimate, [batch.pictures[i] for i in mine]
        every, done = job.preview_every, pictures[0].step + batch.done
        previews = None
        if every is not None and done % every == 0:
            previews = self._previews.of(estimate()[list(mine)], pictures[0].plan.parameters)

        def decode() -> list[Image]:
            latents = check_finite(estimate()[list(mine)], f"step {done}")
            return to_pil(self._backend.decode(latents, decoder=self._decoder))

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
                picture.part()
                picture.joined = 0
                self._batches[picture.group] = Batch([picture])

    # Out

    def _leave(self) -> None:
        """Decode the pictures that are done; drop those whose job was cancelled or has failed."""
        if self._has_deadlines:
            self._end_late([*self.waiting(), *self.running()])
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
            images = to_pil(self._backend.decode(latents, decoder=self._decoder))
            for number, picture in enumerate(pictures):
                if picture.plan.canvas is not None:
                    images[number] = picture.plan.canvas.paste(images[number])
        except Exception as error:  # of any runtime
            if len(pictures) > 1:
                for picture in pictures:
                    self._finish([picture])
            else:
                logger.warning("decoding failed, a picture is lost: %s", error)
                pictures[0].job.fail(error)
            return
        ms = 1e3 * (time.perf_counter() - start)
        told: set[int] = set()  # pictures of one call share their timings
        for picture, image in zip(pictures, images, strict=True):
            if id(picture.job.timings) not in told:
                told.add(id(picture.job.timings))
                picture.job.timings.decode_ms += ms
            picture.job.put(picture.number, image, picture.plan.parameters)
