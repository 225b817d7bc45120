"""Scheduler: requests join the running pictures between two steps, and leave when they are done.

Each launch draws the pictures of one size and merge; launches alternate where there are several.
Tenants take turns, one picture at a time. A request that does not fit beside the others is passed
over a few times and then waited for. What a picture becomes does not depend on its company.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TypeAlias

from PIL import Image

from bootpig_rt.batch import TextStates
from bootpig_rt.config import SamplingParams, check_int
from bootpig_rt.errors import BootPIGError, Cancelled, ParameterError
from bootpig_rt.flight import Flight
from bootpig_rt.generation import Clock, GenerationResult, PictureParameters, Request
from bootpig_rt.image import to_pil
from bootpig_rt.planner import Planner, Tables, check_params
from bootpig_rt.reference_kv import ReferenceKey
from bootpig_rt.sampler import Segment, check_finite

logger = logging.getLogger(__name__)

_Group: TypeAlias = tuple[int, int, str]
"""Width, height and merge: what pictures of one launch share."""

_PATIENCE = 8
"""How often a picture that does not fit is passed over before all others wait for it."""


class Ticket:
    """One request on its way. Made by `Scheduler.submit`; may be asked from any thread."""

    def __init__(self, request: Request, params: SamplingParams, pictures: list[Request]) -> None:
        """Nothing is done yet."""
        self.request, self.params = request, params
        self._pictures = pictures
        self._images: list[Image.Image | None] = [None] * len(pictures)
        self._parameters: list[PictureParameters | None] = [None] * len(pictures)
        self._passes = 0
        self._error: BaseException | None = None
        self._clock = Clock()
        self._changed = Condition()
        self._left = len(pictures)

    @property
    def is_done(self) -> bool:
        """Its pictures are there, or it failed."""
        return self._left == 0 or self._error is not None

    def cancel(self) -> None:
        """Leave at the next step. May be called twice, and after the end."""
        self._fail(Cancelled("the request was cancelled"))

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """The pictures; waits for whoever runs the scheduler.

        Args:
            timeout_s: How long to wait; None waits on.

        Raises:
            TimeoutError: It is not done yet.
            BootPIGError: What it failed with.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout_s):
                raise TimeoutError(f"the request is not done after {timeout_s} s")
        if self._error is not None:
            raise self._error
        return GenerationResult(
            images=[image for image in self._images if image is not None],
            parameters=[one for one in self._parameters if one is not None],
            timings=self._clock.timings(),
            reference_passes=self._passes,
        )

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self.is_done:
                self._error = error
                self._changed.notify_all()

    def _put(self, number: int, image: Image.Image, parameters: PictureParameters) -> None:
        with self._changed:
            self._images[number], self._parameters[number] = image, parameters
            self._left -= 1
            self._changed.notify_all()


@dataclass(eq=False)
class _Entry:
    """One picture of a ticket, waiting or running."""

    ticket: Ticket
    number: int
    need: tuple[tuple[str, ReferenceKey], int] | None
    passed_over: int = 0
    flight: Flight | None = None

    @property
    def group(self) -> _Group:
        params = self.ticket.params
        return params.width_px, params.height_px, params.merge


@dataclass
class _Running:
    """The pictures of one group and the run that they are in, if there is one."""

    entries: list[_Entry] = field(default_factory=list)
    segment: Segment | None = None


class Scheduler:
    """Continuous batching over the step engine.

    `submit` may be called from any thread; `step` does one launch at a time.

    Args:
        planner: Plans pictures and finds tables.
        texts: Gives text states.
        max_batch: Pictures that are drawn at once, over all groups.
        max_waiting: Pictures that may wait; more are refused.
    """

    def __init__(
        self, planner: Planner, texts: TextStates, *, max_batch: int = 8, max_waiting: int = 4096
    ) -> None:
        """Start empty."""
        self.max_batch = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        self.max_waiting = check_int("max_waiting", max_waiting, 1, 1 << 20, "4096 is usual")
        self._planner, self._texts = planner, texts
        self._waiting: OrderedDict[str, deque[_Entry]] = OrderedDict()
        self._groups: OrderedDict[_Group, _Running] = OrderedDict()
        self._lock, self._stepping = Lock(), Lock()

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    @property
    def num_running(self) -> int:
        """Pictures between their first step and their last."""
        with self._lock:
            return sum(len(running.entries) for running in self._groups.values())

    def submit(self, request: Request, params: SamplingParams) -> Ticket:
        """Take a request. It begins with a `step` that has room for it.

        Raises:
            SubjectMismatch: A subject of another pair.
            ParameterError: Not for this pair, too large for the budget, or too many wait already;
                the last two say what would fit.
        """
        check_params(self._planner.backend.spec, params)
        pictures = list(request.split())
        need = self._planner.needs(pictures[0], params)
        self._planner.manner(pictures[0], params)
        ticket = Ticket(request, params, pictures)
        address = None if need is None else ((request.tenant, need[0]), need[1])
        with self._lock:
            room = self.max_waiting - sum(map(len, self._waiting.values()))
            if len(pictures) > room:
                raise ParameterError(
                    f"{len(pictures)} pictures, but {room} of {self.max_waiting} places to wait "
                    f"are free: {room} would fit now; ask for fewer or later"
                )
            queue = self._waiting.setdefault(request.tenant, deque())
            queue.extend(_Entry(ticket, number, address) for number in range(len(pictures)))
        return ticket

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False when nothing is left to do."""
        with self._stepping:
            self._leave()
            self._join()
            with self._lock:
                if not self._groups:
                    return any(self._waiting.values())
                group, running = next(iter(self._groups.items()))
                self._groups.move_to_end(group)
            self._launch(running)
            self._leave()
            return True

    def run(self) -> None:
        """Step until nothing is left."""
        while self.step():
            pass

    def map(
        self, requests: Iterable[Request], params: SamplingParams
    ) -> Iterator[GenerationResult]:
        """Results of a stream of requests in its order; see `Pipeline.map`."""
        source = iter(requests)
        tickets: deque[Ticket] = deque()
        is_open = True
        try:
            while is_open or tickets:
                while is_open and self.num_waiting < self.max_batch:
                    request = next(source, None)
                    is_open = request is not None
                    if request is not None:
                        tickets.append(self._submitted(request, params))
                while tickets and tickets[0].is_done:
                    yield tickets.popleft().result()
                self.step()
        finally:
            for ticket in tickets:  # the reader left, or a request failed
                ticket.cancel()
            self._leave()

    def _submitted(self, request: Request, params: SamplingParams) -> Ticket:
        """A ticket in any case: one that is refused fails in its turn, after those before it."""
        try:
            return self.submit(request, params)
        except BootPIGError as error:
            ticket = Ticket(request, params, list(request.split()))
            ticket._fail(error)
            return ticket

    def _join(self) -> None:
        """Let waiting pictures in, tenants in turn, until the batch or the budget is full."""
        while True:
            with self._lock:
                entry = self._next_that_fits()
            if entry is None:
                return
            ticket = entry.ticket
            picture = ticket._pictures[entry.number]
            try:
                with ticket._clock.stage("reference"):
                    flights, passes = self._planner.flights(
                        [picture], ticket.params, self._tables_in_use()
                    )
            except Exception as error:  # of this request alone; whoever asks for it gets it
                logger.info("a request failed before its first step: %s", error)
                ticket._fail(error)
                continue
            entry.flight = flights[0]
            ticket._passes += passes
            with self._lock:
                running = self._groups.setdefault(entry.group, _Running())
            self._interrupt(running)
            running.entries.append(entry)

    def _tables_in_use(self) -> Tables:
        """Tables of the running pictures: theirs to share, even where the store keeps none."""
        with self._lock:
            running = [entry for group in self._groups.values() for entry in group.entries]
        return {
            (entry.ticket.request.tenant, entry.flight.plan.table.key): entry.flight.plan.table
            for entry in running
            if entry.flight is not None and entry.flight.plan.table is not None
        }

    def _next_that_fits(self) -> _Entry | None:
        """Take the next picture out of its queue; its tenant goes to the end of the line."""
        running = [entry for group in self._groups.values() for entry in group.entries]
        if len(running) >= self.max_batch:
            return None
        for tenant in list(self._waiting):
            queue = self._waiting[tenant]
            while queue and queue[0].ticket.is_done:  # cancelled or failed
                queue.popleft()
            if not queue:
                del self._waiting[tenant]
                continue
            entry = queue[0]
            if not running or self._fits(entry, running):
                queue.popleft()
                self._waiting.move_to_end(tenant)
                return entry
            entry.passed_over += 1
            if entry.passed_over > _PATIENCE:
                return None
        return None

    def _fits(self, entry: _Entry, running: list[_Entry]) -> bool:
        budget = self._planner.options.budget_bytes
        if budget is None:
            return True
        needs = dict(one.need for one in [*running, entry] if one.need is not None)
        return sum(needs.values()) <= budget

    def _launch(self, running: _Running) -> None:
        """One step of one group."""
        flights = [entry.flight for entry in running.entries if entry.flight is not None]
        try:
            if running.segment is None:
                with self._timed(running, "text"):
                    running.segment = Segment(self._planner.backend, flights, self._texts)
            with self._timed(running, "denoise"):
                running.segment.step()
                if running.segment.is_over:
                    self._interrupt(running)
        except Exception as error:  # the launch is lost: its pictures fail, the others go on
            running.segment = None
            self._lose(running, error)

    def _lose(self, running: _Running, error: Exception) -> None:
        logger.warning("a launch of %d pictures failed: %s", len(running.entries), error)
        for entry in running.entries:
            entry.ticket._fail(error)

    @contextmanager
    def _timed(self, running: _Running, stage: str) -> Iterator[None]:
        """Every request of a launch has waited for all of it."""
        start = time.perf_counter()
        yield
        ms = 1e3 * (time.perf_counter() - start)
        for ticket in {id(entry.ticket): entry.ticket for entry in running.entries}.values():
            ticket._clock.add(stage, ms)

    def _interrupt(self, running: _Running) -> None:
        """End the run of a group: its pictures get their states and may be joined anew."""
        segment, running.segment = running.segment, None
        if segment is None:
            return
        try:
            segment.close()
        except Exception as error:  # as for a launch
            self._lose(running, error)

    def _leave(self) -> None:
        """Decode the pictures that are done; drop those whose request was cancelled or failed."""
        for running in list(self._groups.values()):
            gone = [entry for entry in running.entries if entry.ticket.is_done]
            if gone:
                self._interrupt(running)
            done = [e for e in running.entries if e not in gone and e.flight and e.flight.is_done]
            if gone or done:
                with self._lock:
                    leaving = {id(entry) for entry in [*gone, *done]}
                    running.entries = [e for e in running.entries if id(e) not in leaving]
            for entry in done:
                self._finish(entry)
        with self._lock:
            for group in [group for group, running in self._groups.items() if not running.entries]:
                del self._groups[group]

    def _finish(self, entry: _Entry) -> None:
        ticket, flight = entry.ticket, entry.flight
        assert flight is not None
        try:
            latents = check_finite(flight.latents[None], f"{flight.step} steps")
            with ticket._clock.stage("decode"):
                pixels = check_finite(self._planner.backend.decode(latents), "the image decoder")
                image = to_pil(pixels)[0]
            ticket._put(entry.number, image, self._planner.parameters(flight, ticket.params))
        except Exception as error:  # of this picture alone
            ticket._fail(error)
