"""How far TensorRT is with an engine, from the phases that it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Progress: TypeAlias = Callable[[str, float], None]
"""(what is being done, share done 0..1) -> None; may raise to cancel."""

ROOT_PHASE = "Building engine"


def make_monitor(trt: Any, graph: str, progress: Progress | None) -> Any:
    """TensorRT's nested phases as one share that never falls, and a way to cancel."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.is_cancelled = False
            self.error: BaseException | None = None
            self._clock = PhaseClock()

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self._clock.start(name, parent, num_steps)
            self._tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            self._clock.step(name, step)
            self._tell(name)
            return not self.is_cancelled

        def phase_finish(self, name: str) -> None:
            self._clock.finish(name)
            self._tell(name)

        def _tell(self, name: str) -> None:
            if progress is None or self.is_cancelled:
                return
            try:
                progress(f"{graph}: {name}", self._clock.share)
            except BaseException as error:  # raised again where the build was called
                self.error, self.is_cancelled = error, True

    return Monitor()


class PhaseClock:
    """Share done of nested phases. Each step of a phase counts alike, and so does each root.

    A phase inside another fills the step that the other is at.
    """

    def __init__(self) -> None:
        """Start the clock."""
        self.share = 0.0
        self._phases: dict[str, tuple[str | None, int, int]] = {}

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """A phase begins."""
        self._phases[name] = (parent, max(1, num_steps), 0)

    def step(self, name: str, step: int) -> None:
        """A phase has done its step number `step`, counted from 0."""
        if name in self._phases:
            parent, num_steps, _ = self._phases[name]
            self._phases[name] = (parent, num_steps, min(step + 1, num_steps))
            self._update(name)

    def finish(self, name: str) -> None:
        """A phase is over, whatever its steps."""
        if name in self._phases:
            parent, num_steps, _ = self._phases[name]
            self._phases[name] = (parent, num_steps, num_steps)
            self._update(name)
            del self._phases[name]

    def _update(self, name: str) -> None:
        share, at = 0.0, name
        while at in self._phases:
            parent, num_steps, done = self._phases[at]
            share = min(1.0, (done + share) / num_steps)
            if parent is None:
                break
            at = parent
        if at == ROOT_PHASE:  # others, such as copying the network, take no time
            self.share = max(self.share, share)
