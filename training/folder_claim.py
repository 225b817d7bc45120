"""One writer for a folder of shards at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bootpig_rt.errors import StorageError, describe_os_error

LOCK = ".writing.lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against other processes; nothing is left of the lock.

    The kernel releases it when a process dies.

    Raises:
        StorageError: Another process writes there, or the folder cannot be made.
    """
    file = folder / LOCK
    lock = FileLock(file, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise StorageError(
            f"another run is writing {str(folder)!r}; wait for it, stop it, or choose another "
            "output"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write in {folder}: {describe_os_error(error)}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: who has just opened it, opens again
            file.unlink()
        lock.release()
