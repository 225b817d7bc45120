"""A claim on a table: who holds it makes the table, the others look again later.

A claim saves work and is never needed for a right result: where there are no locks, or one cannot
be had, everybody may make the table. The kernel releases the claims of a process that dies.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from bootpig_rt.errors import describe_os_error

logger = logging.getLogger(__name__)


class Claim:
    """One table is this holder's to make, until `release`.

    Args:
        lock: The lock that is held; None where the folder has no locks.
    """

    def __init__(self, lock: FileLock | None) -> None:
        self._lock = lock

    def release(self) -> None:
        """Let others make the table, and remove the lock file. Of any thread; twice is once."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        with contextlib.suppress(OSError):
            # While it is held: who has just opened this file finds it unlinked, and opens again.
            Path(lock.lock_file).unlink()
        with contextlib.suppress(OSError):
            lock.release()


def take(file: Path) -> Claim | None:
    """Claim what a lock file stands for, without waiting; None while another holds it.

    Two holders in one process exclude each other as two processes do.

    Args:
        file: The lock file, in a folder that is there.
    """
    # A link that someone planted is not followed.
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        _say_once(file.parent, describe_os_error(error))
        return Claim(None)
    return Claim(lock)


@functools.cache
def _say_once(folder: Path, reason: str) -> None:
    logger.info(
        "no locks in %s (%s): processes that need the same table at once each make it",
        folder,
        reason,
    )
