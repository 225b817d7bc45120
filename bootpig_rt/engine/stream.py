"""Stream: requests that come one by one, read ahead of their pictures no further than needed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.job import Job
from bootpig_rt.errors import BootPIGError, EngineFull
from bootpig_rt.request import GenerationResult, Request


def draw_stream(
    engine: Engine, requests: Iterable[Request], *, returns_errors: bool
) -> Iterator[GenerationResult | Exception]:
    """Results of a stream of requests, in their order; see `Pipeline.map`."""
    stream = Stream(engine, requests)
    try:
        for job in stream:
            engine.drive([job])
            error = job.exception() if not job.cancelled() else None
            yield error if returns_errors and isinstance(error, Exception) else job.result()
    finally:
        stream.close()  # the reader left, or a request failed


class Stream:
    """Jobs of a stream of requests, read on a thread of its own.

    Reading goes on while fewer pictures wait than a batch holds.
    """

    def __init__(self, engine: Engine, requests: Iterable[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_read, self._is_closed = False, False
        self._error: BaseException | None = None
        threading.Thread(target=self._read, name="bootpig-map", daemon=True).start()

    def __iter__(self) -> Iterator[Job]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_read)
                if not self._jobs:
                    break
                job = self._jobs[0]
            yield job
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Cancel what is not done, and read no further."""
        with self._changed:
            self._is_closed = True
            jobs = list(self._jobs)
            self._changed.notify_all()
        for job in jobs:
            job.cancel()

    def _read(self) -> None:
        try:
            for request in self._requests:
                job = self._submitted(request)
                job.add_done_callback(self._wake)
                with self._changed:
                    self._jobs.append(job)
                    self._changed.notify_all()
                    while not self._is_closed and not self._has_room():
                        self._changed.wait(0.05)
                    if self._is_closed:
                        return
        except BaseException as error:  # of whoever gives the requests; raised where they are drawn
            self._error = error
        finally:
            with self._changed:
                self._is_read = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        # One that was refused takes no place, so it must not make the stream run ahead.
        unread = sum(1 for job in self._jobs if job.done())
        return self._engine.num_waiting + unread < self._engine.max_batch

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _submitted(self, request: Request) -> Job:
        """A job in any case: one that is refused fails in its turn, after those before it."""
        while True:
            # Looked at before the engine is asked: they may be drawn by the time that it refuses.
            has_jobs = bool(self._jobs)
            try:
                return self._engine.submit(request)
            except EngineFull as error:
                with self._changed:
                    # A stream can wait, where somebody makes room: the engine's own thread, or who
                    # draws what this stream has submitted already.
                    makes_room = self._engine.is_served or has_jobs
                    if makes_room and not self._is_closed:
                        self._changed.wait(min(error.retry_after_s, 0.5))
                        continue
                refused: BootPIGError = error
            except BootPIGError as error:
                refused = error
            job = Job(request, ())
            job.fail(refused)
            return job
