"""Signals that end a run after its step, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

# Ctrl-C; what schedulers send ahead of the end; what Slurm is told to send earlier (--signal=USR1).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def listening(hear: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `hear` with the first signal of each kind; a second Ctrl-C ends the process at once."""
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])
        hear(signal.Signals(number))

    with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
        for number in SIGNALS:
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
