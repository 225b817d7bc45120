"""LineWriter: lines to a file descriptor, from a thread that may wait for it in place of us.

A reader that is slow fills the queue, and then lines are dropped; one that closed the pipe will not
come back, so that everything is dropped from then on. Either way whoever logs goes on at once.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

_MAX_LINES = 10_000
_CLOSE_S = 1.0


class LineWriter:
    """Writes lines in their order. `put` may be called from any thread.

    Args:
        fd: File descriptor; stays open.
        lost_line: The line that tells how many lines were dropped, once others get through again.
        max_lines: That may wait to be written.

    Attributes:
        is_broken: The reader is gone for good.
    """

    def __init__(
        self, fd: int, lost_line: Callable[[int], str], *, max_lines: int = _MAX_LINES
    ) -> None:
        """The thread starts with the first line."""
        self.is_broken = False
        self._fd, self._lost_line = fd, lost_line
        self._num_dropped = self._num_failed = 0  # each counted on one side of the queue
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        self._num_told = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def num_lost(self) -> int:
        """Lines that were not written and will not be."""
        return self._num_dropped + self._num_failed

    def put(self, line: str) -> None:
        """Have a line written; dropped where too many wait."""
        with self._lock:
            if self.is_broken:
                self._num_dropped += 1
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bootpig-logs", daemon=True)
                self._thread.start()
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                self._num_dropped += 1

    def flush(self, timeout_s: float = _CLOSE_S) -> None:
        """Wait until what was put is written, as long as the timeout at most."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(
                lambda: self.is_broken or not self._lines.unfinished_tasks, timeout_s
            )

    def close(self) -> None:
        """Write what waits, as far as the reader takes it in a moment."""
        self.flush()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._lines.put_nowait(None)
        except queue.Full:  # the reader does not read; the thread ends with the process
            return
        thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)
            self._lines.task_done()
        self._lines.task_done()  # that which ended it: nobody waits for a line that never comes

    def _write(self, line: str) -> None:
        if self.is_broken:
            self._num_failed += 1
            return
        try:
            lost = self.num_lost - self._num_told
            if lost:
                self._send(self._lost_line(lost))
                self._num_told += lost
            self._send(line)
        except BrokenPipeError:
            self.is_broken = True
            self._num_failed += 1
        except OSError:  # such as a disk that is full: it may have room again
            self._num_failed += 1

    def _send(self, line: str) -> None:
        data = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]
