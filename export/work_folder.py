"""The hidden folder that a build works in: locked, resumable, and published all at once.

It lies beside the bundle that is being made, `.NAME.building`. A build that was interrupted leaves
the files that it finished there, and the same order goes on from them; another order starts over,
and so does one after a failed parity gate. Knows files, not what they hold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ParityError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.files.held import LOCK, held

logger = logging.getLogger(__name__)

_STATE = ".state.json"


class WorkFolder:
    """Files on their way to a bundle.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is read or dropped before `resume`."""
        self.path = path
        self._key: str | None = None
        self._finished: dict[str, dict[str, Any]] = {}

    def resume(self, key: str) -> None:
        """Read what an earlier build of the same key finished, and drop all else.

        The key stands for everything that the files depend on.
        """
        self._key = key
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            # Without a state, or with one that a crash left unreadable, start over.
            state = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
            if state["key"] == key:
                self._finished = dict(state["finished"])
        self._drop_unfinished()

    def close(self) -> int:
        """Drop what is not finished.

        Returns:
            How many files are kept.
        """
        if self._key is not None:  # else what an earlier build left is not ours to judge
            self._drop_unfinished()
        return len(self._finished)

    def finished(self, name: str) -> dict[str, Any] | None:
        """What `finish` was told of a file, by its path, if it is still there and unchanged."""
        entry = self._finished.get(name)
        path = self.path / name
        if entry is None or not path.is_file() or measure(path)[1] != entry["sha256"]:
            return None
        details: dict[str, Any] = entry["details"]
        return details

    def finish(self, name: str, details: dict[str, Any]) -> None:
        """Remember that a file is done, so that it is not made again; json holds the details."""
        sha256 = measure(self.path / name)[1]
        self._finished[name] = {"sha256": sha256, "details": details}
        state = {"key": self._key, "finished": self._finished}
        atomic_write_text(self.path / _STATE, json.dumps(state))

    def _drop_unfinished(self) -> None:
        kept = {self.path / name for name in self._finished}
        folders = {self.path, *(parent for path in kept for parent in path.parents)}
        kept |= {self.path / LOCK}
        kept |= {self.path / _STATE} if self._finished else set()
        for folder in folders:
            if not folder.is_relative_to(self.path) or not folder.is_dir():
                continue
            for entry in folder.iterdir():
                if entry not in kept and entry not in folders:
                    remove(entry)


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[WorkFolder]:
    """Lock the hidden folder beside `output` and give it to one build.

    When the block ends well, or with a failed parity gate, the folder is removed. Otherwise the
    files that were finished stay, for the next build of the same order.

    Args:
        output: The bundle to be made. Its parent must exist.

    Raises:
        StorageError: Another build holds the folder, or the disk is full or read-only.
    """
    path = output.with_name(f".{output.name}.building")
    with held(path, "build"):
        work = WorkFolder(path)
        try:
            yield work
        except ParityError:  # the same command would come to the same end
            remove(path)
            raise
        except BaseException:
            num_kept = work.close()
            if num_kept:
                logger.warning(
                    "%d finished files are kept in %s; the same command goes on from them, or "
                    "remove them with: rm -r %s",
                    num_kept,
                    path,
                    shlex.quote(str(path)),
                )
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
