"""Loop: what happens in a step. Pictures are let in, a batch makes a launch, pictures are let out.

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
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from PIL.Image import Image

from bootpig_rt.backends.base import Backend, FloatArray
from bootpig_rt.backends.finite import check_finite
from bootpig_rt.engine.batch import Batch, Group, Picture, texts_of
from bootpig_rt.engine.events import Launch, OnLaunch, ReferenceEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.memory import TableUse, bytes_held
from bootpig_rt.engine.plan import Planner
from bootpig_rt.engine.preview import fit_preview, preview
from bootpig_rt.engine.queue import Queue
from bootpig_rt.engine.text_states import TextStates
from bootpig_rt.errors import Cancelled
from bootpig_rt.images.picture import to_pil
from bootpig_rt.reference.reference_pass import make_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.request import Timings
from bootpig_rt.storage.store import Claim, SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.02
"""How soon a table that somebody else is making is looked for again."""

_Whose: TypeAlias = tuple[str, ReferenceKey]
"""Tenant and key of a table."""


class Loop:
    """The pictures that run, and the step that takes them on. One thread runs it at a time.

    Args:
        backend: Draws.
        tokenizer: Of the pair.
        store: Keeps reference tables.
        planner: Says what pictures are made from.
        max_batch: Pictures that are drawn at once.
        changed: Guards who waits and who runs; told whenever one of them may go on.
        launched: Told of every launch.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        store: SubjectStore,
        planner: Planner,
        *,
        max_batch: int,
        changed: threading.Condition,
        launched: OnLaunch,
    ) -> None:
        """Nothing runs yet."""
        self.max_batch = max_batch
        self.queue = Queue()
        self.launch_s = 0.0
        self.num_changes = 0
        self.has_deadlines = False
        self._backend, self._tokenizer = backend, tokenizer
        self._store, self._planner = store, planner
        self._texts = TextStates(backend, tokenizer)
        self._batches: OrderedDict[Group, Batch] = OrderedDict()
        self._lookups: dict[_Whose, Future[ReferenceTable | Claim | None]] = {}
        self._look_again: dict[_Whose, float] = {}
        self._making: set[_Whose] = set()
        self._preview_map: FloatArray | None = None
        self._changed, self._launched = changed, launched

    def tell(self) -> None:
        """Something changed: whoever waits looks again."""
        with self._changed:
            self.num_changes += 1
            self._changed.notify_all()

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False where nothing could be done."""
        self._leave()
        if self.queue.is_used:
            self._join()
        return self._advance()

    def pictures(self) -> Iterator[Picture]:
        """All that wait or run."""
        with self._changed:
            return iter([*self.queue, *self.running()])

    def running(self) -> list[Picture]:
        """Pictures between their first step and their last."""
        return [one for batch in self._batches.values() for one in batch.pictures]

    # In

    def _join(self) -> None:
        """Let waiting pictures in until the batch or the budget is full."""
        passed: set[Picture] = set()
        skipped: set[Picture] = set()
        while self.queue.is_used and (picture := self._next(skipped, passed)) is not None:
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
            running = self.running()
            if len(running) >= self.max_batch:
                return None
            return self.queue.next_that_fits(
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
            lookup.add_done_callback(lambda _: self.tell())
        if not lookup.done():
            return False
        del self._lookups[whose]
        found = lookup.result()
        if found is None and whose in self._making:  # below this one: a callback drives the engine
            picture.table = self._make_table(picture, None)
            return True
        if found is None:
            self._look_again[whose] = time.monotonic() + LOOK_AGAIN_S
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
            self.queue.take(picture)  # nested steps leave it alone
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
                    self.queue.add([picture])
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
                self.queue.take(picture)
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
            wanted = {(one.job.tenant, one.plan.table.key) for one in self.queue if one.plan.table}
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
        self.launch_s = took_s if not self.launch_s else 0.9 * self.launch_s + 0.1 * took_s
        self._launched(Launch(len(batch.pictures), batch.num_rows, took_s))
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
        if self.has_deadlines:
            self._end_late(self.pictures())
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
            picture.job.put(picture.number, image, self._planner.parameters(picture.plan))


def _timings_of(pictures: Iterable[Picture]) -> Iterable[Timings]:
    """Of the calls that pictures are of, each once."""
    return {id(one.job.timings): one.job.timings for one in pictures}.values()
