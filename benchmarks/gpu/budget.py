"""A time budget: what there is no time for is left out, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Counts down from its making.

    Args:
        seconds: In all.
        clock: Tells the seconds of now.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start."""
        self.seconds = seconds
        self._clock = clock
        self._start = clock()

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def why_not(self, *, until: float = 1.0, needs_s: float = 0.0) -> str | None:
        """Why a piece of work has to be left out; None where there is time for it.

        Args:
            until: Share of the budget at which this kind of work ends.
            needs_s: About what it takes.
        """
        limit = self.seconds * until
        if self.used_s + needs_s < limit:
            return None
        minutes = f"{self.seconds / 60:g} min"
        return (
            f"no time left: {self.used_s:.0f} s of {minutes} used, this part ends at {limit:.0f} s"
            + (f" and needs about {needs_s:.0f} s" if needs_s else "")
        )
