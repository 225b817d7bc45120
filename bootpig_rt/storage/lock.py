"""One process at a time: lock files of a shared folder, which the kernel releases with a process.

A lock saves work and is never needed for a right result. Where there are no locks, or one cannot be
had, the block runs without it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # None stands for a module that is not there

logger = logging.getLogger(__name__)

MAX_WAIT_S = 600.0
"""A process that was stopped (Ctrl-Z) keeps its locks: nobody waits for it longer than this."""

_POLL_S = 0.02
_guard = threading.Lock()
_purpose_here: dict[Path, str] = {}
"""What this process holds or waits for each lock file for."""


@contextlib.contextmanager
def alone(file: Path, purpose: str) -> Iterator[None]:
    """Keep other processes out of blocks with the same purpose.

    Several purposes may share a file: other processes then wait for each other without need,
    threads of this process do not.

    Args:
        file: The lock file; made if its folder is there, and never removed.
        purpose: What is done in the block.
    """
    with _guard:
        is_shared = _purpose_here.setdefault(file, purpose) != purpose
    if is_shared:
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            try:
                descriptor = _opened(file)
                stack.callback(os.close, descriptor)  # which ends the lock as well
                _wait(descriptor, file)
            except OSError as error:
                _say_once(file.parent, error.strerror or str(error))
            yield
    finally:
        with _guard:
            if _purpose_here.get(file) == purpose:
                del _purpose_here[file]


def _opened(file: Path) -> int:
    if fcntl is None:
        raise OSError("this system has no file locks")
    # O_NOFOLLOW: a link that someone planted is not followed.
    return os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _wait(descriptor: int, file: Path) -> None:
    end = time.monotonic() + MAX_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                logger.warning("%s is held by another process; going on without it", file)
                return
            time.sleep(_POLL_S)


@functools.cache
def _say_once(folder: Path, reason: str) -> None:
    logger.info(
        "no locks in %s (%s): processes that need the same table at once each make it",
        folder,
        reason,
    )
