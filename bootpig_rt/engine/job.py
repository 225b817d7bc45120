"""Job: one request on its way, as a `concurrent.futures.Future`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from threading import Lock
from typing import Literal

from PIL import Image

from bootpig_rt.engine.events import OnEvent
from bootpig_rt.engine.plan import Plan
from bootpig_rt.errors import Cancelled, DeadlineExceeded
from bootpig_rt.request import GenerationResult, PictureParameters, Request, Timings


class Job(Future[GenerationResult]):
    """What `Engine.submit` returns. May be asked and cancelled from any thread, at any time.

    It counts as pending until its result is there, so `cancel()` always works: the request leaves
    within a step, wherever it is, and `result()` raises `Cancelled`.

    Attributes:
        request: What was asked for.
        request_id: The caller's name for it, for logs.
        tenant: Whose it is.
        priority: Higher ones begin first.
        total_steps: Of all its pictures.
        done_steps: Of them, so far.
        has_begun: Work on it has.
        deadline: By `time.monotonic`, when it must be done; None for no such time.
    """

    def __init__(
        self,
        request: Request,
        plans: Sequence[Plan],
        *,
        on_event: OnEvent | None = None,
        preview_every: int | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
        request_id: str = "",
        timings: Timings | None = None,
    ) -> None:
        """Nothing is done yet. `timings` are shared by the jobs of one call."""
        super().__init__()
        self.request, self.plans = request, tuple(plans)
        self.request_id, self.tenant, self.priority = request_id, request.tenant, priority
        self.on_event, self.preview_every = on_event, preview_every
        self.timings = Timings() if timings is None else timings
        self.total_steps = sum(plan.solver.num_steps for plan in plans)
        self.done_steps = 0
        self.passes = 0
        self._submitted = time.monotonic()
        self.deadline_s = deadline_s
        self.deadline = None if deadline_s is None else self._submitted + deadline_s
        self.has_begun = False
        self._ending: Literal["cancelled", "made"] | None = None
        self._ending_lock = Lock()
        self._made: list[tuple[Image.Image, PictureParameters] | None] = [None] * len(plans)

    def running(self) -> bool:
        """Work on it has begun, and has not ended."""
        return self.has_begun and not self.done()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """The pictures; waits for whoever runs the engine.

        Raises:
            TimeoutError: It is not done after `timeout` seconds.
            Cancelled: It was cancelled.
            BootPIGError: What it failed with.
        """
        try:
            return super().result(timeout)
        except CancelledError as error:
            raise Cancelled(self._told("was cancelled")) from error

    def begin(self) -> None:
        """Work on it begins: what it waited until now is queue time."""
        self.has_begun = True
        waited_ms = 1e3 * (time.monotonic() - self._submitted)
        self.timings.queue_ms = max(self.timings.queue_ms, waited_ms)

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it has ended already."""
        if self._may_end():
            self.set_exception(error)

    def end_late(self) -> None:
        """End it: its deadline is past."""
        done = f"{self.done_steps} of {self.total_steps} steps were done"
        self.fail(DeadlineExceeded(self._told(f"ran out of its {self.deadline_s:g} s; {done}")))

    def put(self, number: int, image: Image.Image, parameters: PictureParameters) -> None:
        """One picture is there; the last one ends the job."""
        self._made[number] = image, parameters
        made = [one for one in self._made if one is not None]
        if len(made) == len(self._made) and self._may_end():
            images, parameter_list = zip(*made, strict=True)
            self.set_result(
                GenerationResult(
                    list(images), list(parameter_list), replace(self.timings), self.passes
                )
            )

    def cancel(self) -> bool:
        """Leave within a step. May be called twice; False once it has ended otherwise."""
        if self._ends("cancelled"):
            super().cancel()
            self.set_running_or_notify_cancel()
        return self._ending == "cancelled"

    def _may_end(self) -> bool:
        """Whether there is something to end: False where it has ended or was cancelled."""
        return self._ends("made") and self.set_running_or_notify_cancel()

    def _ends(self, how: Literal["cancelled", "made"]) -> bool:
        """Decide how it ends; False where that is decided already.

        A caller may cancel it on one thread just when another has its result: one of them is first,
        and the other must not touch the future any more.
        """
        with self._ending_lock:
            if self._ending is not None:
                return False
            self._ending = how
            return True

    def _told(self, what: str) -> str:
        return f"the request {self.request_id} {what}" if self.request_id else f"the request {what}"
