"""Driver: which thread steps the loop. One at a time: a caller that waits, or the engine's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from bootpig_rt.engine.job import Job
from bootpig_rt.errors import ParameterError

logger = logging.getLogger(__name__)


class Driver:
    """Steps for whoever waits, and waits for news where nothing can be done.

    Args:
        step: Does what can be done now; returns False where that is nothing.
        unfinished: The jobs of all pictures that wait or run.
        look_again_s: Until when to look again without news; None for never.

    Attributes:
        changed: Guards who waits, who runs and who drives; told whenever one of them changes.
        is_closing: Its thread ends when all is done, and nothing more may be added.
    """

    def __init__(
        self,
        step: Callable[[], bool],
        unfinished: Callable[[], list[Job]],
        look_again_s: Callable[[], float | None],
    ) -> None:
        """Nobody drives yet."""
        self._step, self._unfinished, self._look_again_s = step, unfinished, look_again_s
        self.changed = threading.Condition(threading.RLock())
        self.is_closing = False
        self._num_changes = 0
        self._driving: threading.Thread | None = None
        self._thread: threading.Thread | None = None

    def tell(self) -> None:
        """Something changed: whoever waits looks again."""
        with self.changed:
            self._num_changes += 1
            self.changed.notify_all()

    def drive(self, jobs: Sequence[Job]) -> None:
        """Return when these jobs are done; step meanwhile if nobody else does.

        An interrupt such as Ctrl-C goes through; the pictures stay as they were.
        """
        me = threading.current_thread()
        while not all(job.done() for job in jobs):
            with self.changed:
                if self._driving not in (None, me):
                    self.changed.wait_for(
                        lambda: self._driving is None or all(job.done() for job in jobs)
                    )
                    continue
                before, self._driving = self._driving, me
            try:
                while not all(job.done() for job in jobs):
                    self._step_or_wait()
            finally:
                with self.changed:
                    self._driving = before  # a callback may drive inside of a step
                    self.tell()

    @property
    def is_served(self) -> bool:
        """A thread of its own drives."""
        return self._thread is not None

    def start(self) -> None:
        """Drive on a thread of its own from now on, until `close`.

        Raises:
            ParameterError: It does already.
        """
        with self.changed:
            if self._thread is not None:
                raise ParameterError("the engine is being served already; close it first")
            self.is_closing = False
            self._thread = threading.Thread(target=self._serve, name="bootpig-engine", daemon=True)
            self._thread.start()

    def close(self, *, drain: bool) -> None:
        """End the thread; draw what waits and runs first, or cancel it."""
        with self.changed:
            thread = self._thread
            if not drain:
                for job in set(self._unfinished()):
                    job.cancel()
            self.is_closing = True
            self.tell()
        if thread is not None:
            thread.join()
        with self.changed:
            self._thread = None
            self.is_closing = False

    def _serve(self) -> None:
        me = threading.current_thread()
        with self.changed:
            self.changed.wait_for(lambda: self._driving is None)
            self._driving = me
        try:
            while not self.is_closing or self._unfinished():
                try:
                    self._step_or_wait()
                except Exception as error:  # the loop outlives what a step did not foresee
                    logger.exception("a step failed in a way that was not foreseen")
                    for job in self._unfinished():
                        job.fail(error)
                    with self.changed:
                        if self.is_closing:
                            break
                        self._wait_for_news(self._num_changes)  # or it might fail for ever
        finally:
            with self.changed:
                self._driving = None
                self.tell()

    def _step_or_wait(self) -> None:
        """Where nothing could be done, wait for news: a request, a cancellation, a table."""
        seen = self._num_changes
        if self._step():
            return
        with self.changed:
            self._wait_for_news(seen, self._look_again_s())

    def _wait_for_news(self, seen: int, timeout_s: float | None = None) -> None:
        """Return when something changed since; the lock is held."""
        self.changed.wait_for(lambda: self._num_changes != seen, timeout_s)
