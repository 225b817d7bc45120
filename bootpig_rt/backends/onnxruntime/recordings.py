"""CUDA graphs that ONNX Runtime records of a step, and who may run when.

ONNX Runtime records what a session does the first time that it sees a number (`gpu_graph_id`), and
replays it whenever it sees that number again: with the addresses of the first time, whatever is
bound then. So each binding has a number of its own, which no other binding gets, and which is given
up together with the buffers that were bound. While one thread records, no other may allocate or
copy on the device: with recordings, all work of a bundle takes turns.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import onnxruntime as ort

_KEY = "gpu_graph_id"


class Recordings:
    """Numbers of the recordings of a bundle's sessions.

    Args:
        is_on: Whether steps are recorded.

    Attributes:
        is_on: Whether steps are recorded.
        turn: To hold while anything of the bundle uses the device; free where nothing is recorded.
    """

    def __init__(self, is_on: bool) -> None:
        """Nothing is recorded yet."""
        self.is_on = is_on
        self.turn: AbstractContextManager[Any] = threading.RLock() if is_on else nullcontext()
        self._numbers = itertools.count(1)
        self._ended: deque[Callable[[], object]] = deque()

    def begin(self) -> tuple[int, ort.RunOptions]:
        """Where steps are recorded: a number that was never given out, and run options with it.

        What ended since is freed here, on a thread that holds the turn.
        """
        while self._ended:
            self._ended.popleft()()
        number, options = next(self._numbers), ort.RunOptions()
        options.add_run_config_entry(_KEY, str(number))
        return number, options

    def end(self, session: Any, number: int) -> None:
        """Its buffers are about to go: nobody will run this number again. May be called anywhere.

        Versions of ONNX Runtime that cannot free one recording keep it as long as the session.
        """
        release = getattr(session, "release_captured_graph", None)
        if release is not None:
            self._ended.append(lambda: release(number))
