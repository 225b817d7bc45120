"""Scheduler: requests join the running pictures between two steps, and leave when they are done.

Each launch draws the pictures of one size and merge; launches alternate where there are several.
Tenants take turns, one picture at a time. A request that does not fit beside the others is passed
over in a few steps and then waited for. What a picture becomes does not depend on its company.

The table of a new subject is made between two steps, in launches of `reference_rows` rows. After
each of them the running pictures make a step, so they wait for one such launch and never for a
whole pass; requests behind the new one do. A table that another thread is making is waited for.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, Literal, TypeAlias, overload

from PIL import Image

from bootpig_rt.backends.finite import check_finite
from bootpig_rt.checks import check_int, check_name
from bootpig_rt.engine.batch import TextStates
from bootpig_rt.engine.flight import Flight
from bootpig_rt.engine.planner import Planner, Tables, TableUse, bytes_held, check_params
from bootpig_rt.engine.sampler import Segment
from bootpig_rt.errors import BootPIGError, Cancelled, ParameterError
from bootpig_rt.images.picture import to_pil
from bootpig_rt.reference.reference_pass import TablePlan
from bootpig_rt.request import Clock, GenerationResult, PictureParameters, Request, SamplingParams

logger = logging.getLogger(__name__)

_Group: TypeAlias = tuple[int, int, str]
"""Width, height and merge: what pictures of one launch share."""

_PATIENCE = 8
"""In how many steps a picture that does not fit is passed over before all others wait for it."""


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
        """Leave at the next step or launch of a pass. May be called twice, and after the end."""
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
    """One picture of a ticket, waiting or running.

    Attributes:
        ticket: Whose picture.
        number: Which one.
        need: The table that it reads.
        passed_over: Steps in which others went ahead.
        flight: Where it stands; None while it waits.
        joined: Launches of its group before it joined: equal for pictures at the same step.
    """

    ticket: Ticket
    number: int
    need: TablePlan | None
    passed_over: int = 0
    flight: Flight | None = None
    joined: int = 0

    @property
    def group(self) -> _Group:
        params = self.ticket.params
        return params.width_px, params.height_px, params.merge


@dataclass
class _Running:
    """The pictures of one group, the run that they are in, and the launches so far."""

    entries: list[_Entry] = field(default_factory=list)
    segment: Segment | None = None
    launches: int = 0


class Scheduler:
    """Continuous batching over the step engine.

    `submit` may be called from any thread; `step` does one launch at a time.

    Args:
        planner: Plans pictures and finds tables.
        texts: Gives text states.
        max_batch: Pictures that are drawn at once, over all groups; no more than the backend takes.
        max_waiting: Pictures that may wait; more are refused.
    """

    def __init__(
        self, planner: Planner, texts: TextStates, *, max_batch: int = 8, max_waiting: int = 4096
    ) -> None:
        """Start empty."""
        asked = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        self.max_batch = planner.most_at_once(asked)
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
            ParameterError: Not for this pair, more steps or references than the backend takes, too
                large for the budget, or too many wait already; says what would fit.
        """
        check_params(self._planner.backend.spec, params)
        pictures = list(request.split())
        need = self._planner.needs(pictures[0], params)
        ticket = Ticket(request, params, pictures)
        with self._lock:
            room = self.max_waiting - sum(map(len, self._waiting.values()))
            if len(pictures) > room:
                raise ParameterError(
                    f"{len(pictures)} pictures, but {room} of {self.max_waiting} places to wait "
                    f"are free: {room} would fit now; ask for fewer or later"
                )
            queue = self._waiting.setdefault(request.tenant, deque())
            queue.extend(_Entry(ticket, number, need) for number in range(len(pictures)))
        return ticket

    def step(self) -> bool:
        """Let pictures in and out, and do one launch. Returns False when nothing is left to do.

        An interrupt such as Ctrl-C goes through; what was being worked on fails with `Cancelled`,
        and the next step goes on with the others.
        """
        with self._stepping:
            self._leave()
            self._join()
            if self._advance():
                return True
            with self._lock:
                return any(self._waiting.values())

    def run(self) -> None:
        """Step until nothing is left."""
        while self.step():
            pass

    @overload
    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams,
        *,
        on_error: Literal["raise"] = ...,
    ) -> Iterator[GenerationResult]: ...

    @overload
    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams,
        *,
        on_error: Literal["raise", "return"],
    ) -> Iterator[GenerationResult | Exception]: ...

    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams,
        *,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Any]:
        """Results of a stream of requests in its order; see `Pipeline.map`."""
        check_name("on_error", on_error, ("raise", "return"))
        return self._map(iter(requests), params, on_error == "return")

    def _map(
        self, source: Iterator[Request], params: SamplingParams, returns_errors: bool
    ) -> Iterator[GenerationResult | Exception]:
        tickets: deque[Ticket] = deque()
        is_open = True
        try:
            while is_open or tickets:
                while is_open and self.num_waiting < self.max_batch:
                    request = next(source, None)
                    is_open = request is not None
                    if request is not None:
                        tickets.append(self._submitted(request, params))
                        if tickets[-1].is_done:  # refused: it fills no place, so read no further
                            break
                while tickets and tickets[0].is_done:
                    ticket = tickets.popleft()
                    if returns_errors and isinstance(ticket._error, Exception):
                        yield ticket._error
                    else:
                        yield ticket.result()
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
        passed: set[_Entry] = set()
        while (entry := self._next_that_fits(passed)) is not None:
            with self._losing([entry], "the start of a picture"):
                self._take(entry)
                self._begin(entry)
        for entry in passed:
            entry.passed_over += 1

    def _take(self, entry: _Entry) -> None:
        """Out of its queue; its tenant goes to the end of the line."""
        tenant = entry.ticket.request.tenant
        with self._lock:
            self._waiting[tenant].popleft()
            self._waiting.move_to_end(tenant)

    def _begin(self, entry: _Entry) -> None:
        """Find or make the table of a picture, and put it beside the others of its group."""
        ticket = entry.ticket

        def after_launch(done: int, total: int) -> None:
            if ticket.is_done:
                raise Cancelled(f"cancelled after {done} of {total} rows of the reference pass")
            self._advance()

        with ticket._clock.stage("reference"):
            flights, passes = self._planner.flights(
                [ticket._pictures[entry.number]],
                ticket.params,
                self._tables_in_use(),
                progress=after_launch,
            )
        ticket._passes += passes
        with self._lock:
            running = self._groups.setdefault(entry.group, _Running())
        self._interrupt(running)
        entry.flight, entry.joined = flights[0], running.launches
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

    def _next_that_fits(self, passed: set[_Entry]) -> _Entry | None:
        """The picture to let in next, still in its queue; adds those that are passed over."""
        with self._lock:
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
                    return entry
                passed.add(entry)
                if entry.passed_over >= _PATIENCE:
                    return None
            return None

    def _fits(self, entry: _Entry, running: list[_Entry]) -> bool:
        """Whether the tables of all of them have room; the picture would join at step 0."""
        budget = self._planner.options.budget_bytes
        if budget is None or entry.need is None:
            return True
        group = self._groups.get(entry.group)
        paces = [(one, one.joined) for one in running]
        paces.append((entry, 0 if group is None else group.launches))
        uses = [
            TableUse(one.ticket.request.tenant, one.need, one.group, (one.group, joined))
            for one, joined in paces
            if one.need is not None
        ]
        return bytes_held(uses, self._planner.backend.spec) <= budget

    def _advance(self) -> bool:
        """One launch of the group whose turn it is; False where nothing runs."""
        with self._lock:
            if not self._groups:
                return False
            group, running = next(iter(self._groups.items()))
            self._groups.move_to_end(group)
        self._launch(running)
        self._leave()
        return True

    def _launch(self, running: _Running) -> None:
        """One step of one group."""
        with self._losing(running.entries, "a launch"):
            if running.segment is None:
                flights = [entry.flight for entry in running.entries if entry.flight is not None]
                with self._timed(running, "text"):
                    running.segment = Segment(self._planner.backend, flights, self._texts)
            with self._timed(running, "denoise"):
                running.segment.step()
                running.launches += 1
                if running.segment.is_over:
                    self._interrupt(running)

    @contextmanager
    def _losing(self, entries: Sequence[_Entry], what: str) -> Iterator[None]:
        """What goes wrong inside is the loss of these pictures alone; the others go on."""
        try:
            yield
        except Exception as error:  # whoever asks for the pictures gets it
            if not all(entry.ticket.is_done for entry in entries):
                logger.warning("%s failed, %d pictures are lost: %s", what, len(entries), error)
            for entry in entries:
                entry.ticket._fail(error)
        except BaseException:  # Ctrl-C is for whoever steps, and nobody may wait for ever
            for entry in entries:
                entry.ticket._fail(Cancelled(f"{what} was interrupted"))
            raise

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
        if segment is not None:
            with self._losing(running.entries, "a launch"):
                segment.close()

    def _leave(self) -> None:
        """Decode the pictures that are done; drop those whose request was cancelled or failed."""
        for running in list(self._groups.values()):
            are_gone = [entry.ticket.is_done for entry in running.entries]
            if any(are_gone) and not all(are_gone):
                self._interrupt(running)
            done = [
                entry
                for entry in running.entries
                if entry.flight and entry.flight.is_done and not entry.ticket.is_done
            ]
            with self._losing(done, "decoding"):
                for entry in done:
                    self._finish(entry)
                with self._lock:
                    running.entries = [
                        entry
                        for entry in running.entries
                        if not entry.ticket.is_done and entry not in done
                    ]
        with self._lock:
            for group in [group for group, running in self._groups.items() if not running.entries]:
                del self._groups[group]

    def _finish(self, entry: _Entry) -> None:
        ticket, flight = entry.ticket, entry.flight
        assert flight is not None
        with self._losing([entry], "decoding"):
            latents = check_finite(flight.latents[None], f"{flight.step} steps")
            with ticket._clock.stage("decode"):
                pixels = check_finite(self._planner.backend.decode(latents), "the image decoder")
                image = to_pil(pixels)[0]
            ticket._put(entry.number, image, self._planner.parameters(flight, ticket.params))
