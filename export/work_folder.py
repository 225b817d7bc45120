"""The hidden folder that a build works in: locked, resumable, and published all at once.

It lies beside the bundle that is being made, `.NAME.building`. A build that was killed leaves it,
and the same order goes on from the files that were finished; another order starts over. Knows
files, not what they hold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootpig_rt.atomic import atomic_write_text
from bootpig_rt.bundle_files import measure
from bootpig_rt.errors import StorageError, describe_os_error

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # None stands for a module that is not there

logger = logging.getLogger(__name__)

_STATE = ".state.json"
_LOCK = ".lock"


class WorkFolder:
    """Files on their way to a bundle.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read what an earlier build of the same order finished, and drop that of another."""
        self.path = path
        self._key = key
        self._finished: dict[str, dict[str, Any]] = {}
        self._load()

    @property
    def num_finished(self) -> int:
        """Graphs and engines that are done."""
        return len(self._finished)

    def finished(self, name: str) -> dict[str, Any] | None:
        """What `finish` was told of a file, if it is still there and unchanged.

        Args:
            name: Path within the folder.
        """
        entry = self._finished.get(name)
        path = self.path / name
        if entry is None or not path.is_file() or measure(path)[1] != entry["sha256"]:
            return None
        details: dict[str, Any] = entry["details"]
        return details

    def finish(self, name: str, details: dict[str, Any]) -> None:
        """Remember that a file is done, so that it is not made again.

        Args:
            name: Path within the folder.
            details: For `finished`; must fit into json.
        """
        sha256 = measure(self.path / name)[1]
        self._finished[name] = {"sha256": sha256, "details": details}
        state = {"key": self._key, "finished": self._finished}
        atomic_write_text(self.path / _STATE, json.dumps(state))

    def _load(self) -> None:
        try:
            state = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
            if state["key"] == self._key:
                self._finished = dict(state["finished"])
                return
        except (OSError, ValueError, LookupError, TypeError):
            pass  # no state, or one that a crash left unreadable: start over
        for entry in self.path.iterdir():
            if entry.name != _LOCK:
                remove(entry)


@contextlib.contextmanager
def work_folder(output: Path, key: str) -> Iterator[WorkFolder]:
    """Lock the hidden folder beside `output` and give it to one build.

    When the block ends well the folder is removed. When it does not, the folder stays if a file in
    it was finished, for the next build of the same order.

    Args:
        output: The bundle to be made. Its parent must exist.
        key: Stands for everything that the files depend on.

    Raises:
        StorageError: Another build holds the folder, or the disk is full or read-only.
    """
    path = output.with_name(f".{output.name}.building")
    with _locked(path):
        work = WorkFolder(path, key)
        try:
            yield work
        except BaseException:
            if work.num_finished:
                logger.info(
                    "%d finished files are kept in %s; the same command goes on from them, or "
                    "remove the folder",
                    work.num_finished,
                    path,
                )
            else:
                remove(path)
            raise
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, so that weights take their place once; a copy where links fail.

    Raises:
        OSError: The disk is full, read-only or otherwise refuses.
    """
    if target.exists():
        target.unlink()
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Make a folder and hold it against other processes.

    The lock is on the folder itself, so it leaves no file and ends with the process.
    """
    taken = (
        f"another build is writing {str(path)!r}; wait for it, stop it, or choose another output"
    )
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot build in {path.parent}: {describe_os_error(error)}") from error
    if fcntl is None:
        with _lock_file(path / _LOCK, taken):
            yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The build that held it may have removed the folder between the two calls.
            is_same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except OSError as error:
            raise StorageError(taken) from error
        if not is_same:
            raise StorageError(taken)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock_file(path: Path, taken: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError as error:
        raise StorageError(f"{taken}; if none runs, remove {str(path)!r}") from error
    os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
