"""A folder that one process at a time writes into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bootpig_rt.errors import StorageError, describe_os_error

LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Make a folder and hold it against other processes; nothing is left of the lock.

    A folder that is empty at the end is removed. A process that is killed lets go.

    Args:
        folder: Its parent must exist.
        what: Writes there, for the message: "build".

    Raises:
        StorageError: Another process holds the folder, or it cannot be made.
    """
    file = folder / LOCK
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(file, thread_local=False)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StorageError(
            f"another {what} is writing {str(folder)!r}; wait for it, stop it, or choose another "
            "output"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write the {what} in {folder.parent}: {describe_os_error(error)}"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: who has just opened it, opens again
            file.unlink()
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing is kept in it
