"""Files that are either wholly written or not there at all.

Whatever goes wrong (a full disk, Ctrl-C, an error in the caller's code), the old file stays as it
was and no temporary file is left. This file knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bootpig_rt.errors import BootPIGError, StorageError, describe_os_error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, new_mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open `path` for writing bytes so that it changes all at once, when the block ends well.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and take
    the place of `path` by a rename. An existing file keeps its permissions; a symbolic link keeps
    pointing to its target, which is the file replaced.

    Args:
        path: The file to make or replace. Its folder must exist.
        new_mode: Permissions of a file that was not there before, less the process's umask;
            0o600 for a secret.

    Yields:
        A binary file, open for writing.

    Raises:
        StorageError: The file cannot be written: no folder, no permission, disk full, or `path` is
            a folder or a device. `errno` is the system's number.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        mode = _mode_of_existing(target)
        # O_EXCL: a file of that name, even a link someone planted, is never written through.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, new_mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except BootPIGError:
        raise
    except OSError as error:
        # The temporary name would only confuse: say the name that the caller gave.
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        storage_error = StorageError(f"cannot write {os.fspath(path)!r}: {reason}")
        storage_error.errno = error.errno
        raise storage_error from error
    _sync_folder(target.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, new_mode: int = 0o666) -> None:
    """Write `data` to `path` all at once; `new_mode` as for `atomic_write`.

    Raises:
        StorageError: As for `atomic_write`.
    """
    with atomic_write(path, new_mode=new_mode) as stream:
        stream.write(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, all at once, with its line ends as they are.

    Raises:
        StorageError: As for `atomic_write`.
    """
    atomic_write_bytes(path, text.encode())


def _mode_of_existing(target: Path) -> int | None:
    """Permission bits of the file to be replaced, None when there is none yet."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # a rename would replace /dev/null itself
        raise StorageError(
            f"cannot write {os.fspath(target)!r}: it exists and is not a plain file; "
            "give a file name"
        )
    return stat.S_IMODE(mode)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
