"""The folder of a store: subjects by name, and tables by key, shared by processes.

    FOLDER/subjects/NAME.subject
    FOLDER/tables/<schema>/<sha256 of tenant and key>.table
    FOLDER/tables/<schema>/.<sha256 of tenant and key>.lock    while a process makes that table

A version of this package reads and writes the tables of its own schema alone, so that two versions
may share a folder.

A file appears whole or not at all, is checked when it is read, and may be removed by another
process at any time. A disk that fails costs a table, never a picture. This file knows nothing about
devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bootpig_rt.errors import CheckpointError, ParameterError, StorageError, describe_os_error
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.subject_file import MAX_FILE_BYTES, SubjectFacts, read_facts
from bootpig_rt.reference.table_file import SCHEMA, read_table, read_table_key, write_table
from bootpig_rt.storage.claim import Claim, take

logger = logging.getLogger(__name__)

ENVIRONMENT = "BOOTPIG_RT_STORE"
SUFFIX = ".subject"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEMPORARY_S = 3600.0

DEFAULT_BYTES = 16 << 30


@dataclass(frozen=True)
class StoreFolder:
    """Subjects and tables on disk.

    Attributes:
        path: The folder; made when something is written.
        max_bytes: Of all tables; the least recently used ones are removed. Another version's go
            only while this one's hold no more than half. Subjects are kept.
    """

    path: Path
    max_bytes: int = DEFAULT_BYTES

    @property
    def tables(self) -> Path:
        """Where tables of this version lie."""
        return self.path / "tables" / f"v{SCHEMA}"

    def read(
        self, key: ReferenceKey, tenant: str = ""
    ) -> tuple[ReferenceTable | None, Exception | None]:
        """A table, None where there is none; an error is logged, and a damaged file removed."""
        file = self._file(key, tenant)
        try:
            saved = read_table(file, max_bytes=max(self.max_bytes, MAX_FILE_BYTES))
        except CheckpointError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None, None
            if isinstance(error.__cause__, OSError):  # the disk's fault, not the file's
                logger.warning("the store could not read a table: %s", error)
                return None, error
            logger.warning("the store drops a table that cannot be used: %s", error)
            with contextlib.suppress(OSError):
                file.unlink()
            return None, error
        with contextlib.suppress(OSError):
            os.utime(file)
        if saved.key != key:
            logger.warning("the store ignores %s: it holds the table of another key", file)
            return None, CheckpointError(f"{file} holds the table of another key", file)
        return saved, None

    def write(self, saved: ReferenceTable, tenant: str = "") -> Exception | None:
        """Keep a table. A full disk costs the table and never the picture: logged and returned."""
        if saved.size_bytes > self.max_bytes:
            logger.info("reference table of %d bytes is over the folder's limit", saved.size_bytes)
            return None
        try:
            self.tables.mkdir(parents=True, exist_ok=True)
            write_table(self._file(saved.key, tenant), saved)
        except (StorageError, OSError) as error:
            logger.warning("the store could not keep a table: %s", error)
            return error
        self._make_room()
        return None

    def claim(self, key: ReferenceKey, tenant: str = "") -> Claim | None:
        """Claim a table in order to make and write it, without waiting.

        Whoever gets the claim reads once more, for the table may have come meanwhile, and releases
        the claim when it is written. Where the folder has no locks everybody gets one.

        Returns:
            None while another process, or another thread of this one, is making the table.
        """
        with contextlib.suppress(OSError):  # `write` says so
            self.tables.mkdir(parents=True, exist_ok=True)
        return take(self.tables / f".{key.digest(tenant)}.lock")

    def size_bytes(self) -> int:
        """Bytes of the tables that this version reads."""
        return _bytes(_tables_in(self.tables, "*.table"))

    def save_subject(self, name: str, subject: Subject, *, form: str = "light") -> Path:
        """Keep a subject by name; an older one of the name is replaced at once.

        Raises:
            ParameterError: A name that is not plain.
            StorageError: It cannot be written.
        """
        path = self.subject_file(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {path.parent}: {error.strerror}") from error
        subject.save(path, form=form)
        return path

    def subject_facts(self, name: str) -> SubjectFacts:
        """What the header of a subject's file says; the file is not checked further.

        Raises:
            ParameterError: A name that is not plain, or unknown.
            CheckpointError: A damaged header.
        """
        return read_facts(self.found_subject(name), max_bytes=MAX_FILE_BYTES)

    def load_subject(self, name: str) -> Subject:
        """A subject by name.

        Raises:
            ParameterError: A name that is not plain, or unknown: says which ones there are.
            CheckpointError: A damaged file.
        """
        return Subject.load(self.found_subject(name))

    def remove_subject(self, name: str) -> int:
        """Remove a subject and its tables, of all tenants. Returns the bytes that were freed.

        Raises:
            ParameterError: Unknown.
            StorageError: It cannot be removed.
        """
        path = self.found_subject(name)
        try:
            fingerprint = self.subject_facts(name).fingerprint
        except CheckpointError:
            fingerprint = ""  # damaged: the file alone goes
        try:
            freed = path.stat().st_size
            path.unlink()
        except OSError as error:
            raise StorageError(f"cannot remove {path}: {describe_os_error(error)}") from error
        return freed + self.remove_tables(fingerprint)

    def remove_tables(self, fingerprint: str, tenant: str | None = None) -> int:
        """Remove the tables of a subject, of one tenant or of all. Returns the bytes freed."""
        freed = 0
        for table in _tables_in(self.tables, "*.table"):
            with contextlib.suppress(CheckpointError, OSError):
                # Headers alone: at worst a table is made again.
                key = read_table_key(table.file, max_bytes=table.size)
                is_of_tenant = tenant is None or key.digest(tenant) == table.file.stem
                if key.subject == fingerprint and is_of_tenant:
                    table.file.unlink()
                    freed += table.size
        return freed

    def subject_names(self) -> list[str]:
        """Names of the subjects, sorted."""
        return sorted(file.name.removesuffix(SUFFIX) for file in self._subject_files())

    def subject_file(self, name: str) -> Path:
        """Where the subject of a name lies.

        Raises:
            ParameterError: A name that is not plain.
        """
        if not _NAME.fullmatch(name):
            raise ParameterError(
                f"the name of a subject is {name!r}, expected letters, digits, '.', '_' and '-', "
                "at most 100"
            )
        return self.path / "subjects" / f"{name}{SUFFIX}"

    def found_subject(self, name: str) -> Path:
        """The file of a subject that is there.

        Raises:
            ParameterError: A name that is not plain, or unknown: says which ones there are.
        """
        path = self.subject_file(name)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            names = ", ".join(self.subject_names()) or "none"
            raise ParameterError(
                f"no subject {name!r} in {self.path}, expected one of: {names}"
            ) from None
        except OSError:
            pass  # who opens it says what is wrong
        return path

    def _subject_files(self) -> list[Path]:
        return [
            file
            for file in _listed(self.path / "subjects", f"*{SUFFIX}")
            if not file.name.startswith(".")
        ]

    def _file(self, key: ReferenceKey, tenant: str) -> Path:
        return self.tables / f"{key.digest(tenant)}.table"

    def _make_room(self) -> None:
        everything = sorted(
            _tables_in(self.path / "tables", "**/*.table"), key=lambda table: table.used_at
        )
        mine = [table for table in everything if table.file.parent == self.tables]
        others = [table for table in everything if table.file.parent != self.tables]
        while _bytes(mine) + _bytes(others) > self.max_bytes:
            has_its_share = 2 * _bytes(mine) > self.max_bytes
            oldest = (mine if has_its_share or not others else others).pop(0)
            with contextlib.suppress(OSError):
                oldest.file.unlink()
        # What processes left that were killed: half a file, or a lock that nobody holds.
        for left in _listed(self.tables, ".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _TEMPORARY_S:
                    left.unlink()
        for lock in _listed(self.tables, ".*.lock"):
            if (claim := take(lock)) is not None:
                claim.release()


class _TableFile(NamedTuple):
    file: Path
    size: int
    used_at: float


def _tables_in(folder: Path, pattern: str) -> list[_TableFile]:
    found = []
    for file in _listed(folder, pattern):
        if file.name.startswith("."):
            continue
        with contextlib.suppress(OSError):  # removed by another process
            status = file.stat()
            found.append(_TableFile(file, status.st_size, status.st_mtime))
    return found


def _bytes(tables: Iterable[_TableFile]) -> int:
    return sum(table.size for table in tables)


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder; none where it cannot be read."""
    try:
        return list(folder.glob(pattern))
    except OSError as error:
        logger.warning("the store cannot list %s: %s", folder, describe_os_error(error))
        return []


def default_folder() -> Path | None:
    """The folder that the environment variable BOOTPIG_RT_STORE names, or None."""
    path = os.environ.get(ENVIRONMENT)
    return Path(path) if path else None
