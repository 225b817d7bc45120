"""Heartbeat: whether an engine still does what it was asked, seen from outside of its thread."""

from __future__ import annotations

import threading
import time

from bootpig_rt.backends.cuda.faults import lasting_fault


class Heartbeat:
    """Of one engine. Every method may be called from any thread, and none waits.

    Args:
        hang_s: A launch that takes longer is a hang.
    """

    def __init__(self, hang_s: float) -> None:
        """Nothing is under way."""
        self._hang_s = hang_s
        self._lock = threading.Lock()
        self._num_live = 0
        self._heard_at = 0.0
        self._fault: str | None = None

    def begins(self) -> None:
        """A request is handed to the engine; one `ends` follows."""
        with self._lock:
            if not self._num_live:
                self.beats()
            self._num_live += 1

    def beats(self) -> None:
        """The engine has ended a launch."""
        self._heard_at = time.monotonic()

    def ends(self, error: BaseException | None = None) -> None:
        """A request has ended, with an error or without."""
        broken = lasting_fault(error)
        with self._lock:
            self._num_live -= 1
            self.beats()
            if broken is not None and self._fault is None:
                self._fault = f"the device failed: {broken}"

    def fault(self) -> str | None:
        """Why the engine will draw nothing more in this process; None where it will.

        A hang is one for good: requests that are ended because of it are no sign of life.
        """
        with self._lock:
            silent_s = time.monotonic() - self._heard_at if self._num_live else 0.0
            if silent_s > self._hang_s and self._fault is None:
                self._fault = f"a launch has not ended for {silent_s:.0f} s"
            return self._fault
