"""Subjects where every process of a service finds them: a shared folder, or object storage.

A subject is a file of a few hundred kilobytes at most, named by its fingerprint, so it is sent once
and never changes. What is read is checked in full, as every subject's file is, and kept in memory.
Who draws with it writes it anew now and then, so that its age tells that it is in use; what nobody
has drawn for a while is forgotten. Reference tables are not here: they are large, and each replica
keeps its own.

    URL/<tenant>/<fingerprint>.subject      tenant as the first 16 digits of its sha256
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from threading import Lock
from typing import Any

from bootpig_rt.errors import CheckpointError, ParameterError, StorageError
from bootpig_rt.reference.subject import Subject

logger = logging.getLogger(__name__)

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

MAX_FILE_BYTES = 256 << 20
"""A larger file is refused."""

_RENEWED_AFTER = 0.25
_LOOKED_AT_EVERY = 1 / 24
"""Shares of the time to live: a file in use is written anew, and old files are looked for."""


@dataclass(eq=False)
class _Kept:
    """A subject in memory, and when it was used and put last, in Unix seconds."""

    subject: Subject
    used_at: float
    put_at: float = 0.0


class SubjectStorage:
    """Light subjects under a URL, with a memory of those that were used last. Safe for threads.

    Args:
        url: A folder, or what fsspec can open: `file:///mnt/subjects`, `s3://bucket/subjects`,
            `gs://...`, `memory://...`. Packages for object storage are the user's to install.
        ttl_s: How long a subject is kept after somebody drew with it last; up to a third more.
        max_kept: Subjects kept in memory.

    Raises:
        ParameterError: An unknown kind of URL, or one whose package is missing.
    """

    def __init__(self, url: str, *, ttl_s: float = 86400.0, max_kept: int = 1024) -> None:
        """Open it; nothing is read yet."""
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ParameterError(f"subjects are to be kept at {url!r}, but {error}") from error
        self.url, self._root = url, root.rstrip("/")
        self._is_local = isinstance(self._files, _local_kind())
        self._ttl_s, self._max_kept = ttl_s, max_kept
        self._look_at = 0.0
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._lock = Lock()

    def put(self, subject: Subject, tenant: str) -> None:
        """Keep a subject; one that was put lately is not written again.

        Raises:
            StorageError: It cannot be written.
        """
        known = self._known(tenant, subject.fingerprint)
        if known is not None and time.time() < known.put_at + _RENEWED_AFTER * self._ttl_s:
            return
        try:
            self._write(self._path(tenant, subject.fingerprint), subject)
        except OSError as error:
            raise StorageError(f"cannot keep a subject at {self.url}: {_reason(error)}") from error
        self._keep(tenant, subject, put_at=time.time())

    def get(self, fingerprint: str, tenant: str) -> Subject:
        """The subject of a fingerprint.

        Raises:
            ParameterError: No fingerprint, or a tenant's who has no such subject.
            StorageError: It cannot be read now, or is damaged.
        """
        known = self._known(tenant, fingerprint)
        if known is not None:
            return known.subject
        path = self._path(tenant, fingerprint)
        try:
            subject = self._read(path)
        except FileNotFoundError:
            raise ParameterError(f"no subject {fingerprint[:12]} at {self.url}") from None
        except CheckpointError as error:
            raise StorageError(f"a subject at {self.url} cannot be used: {error}") from error
        except OSError as error:
            raise StorageError(f"cannot read a subject at {self.url}: {_reason(error)}") from error
        if subject.fingerprint != fingerprint:
            raise StorageError(f"the file of subject {fingerprint[:12]} holds another one")
        self._keep(tenant, subject)
        return subject

    def holds(self, fingerprint: str, tenant: str) -> bool:
        """Whether this process has put or read it, and so it need not be sent along."""
        return self._known(tenant, fingerprint) is not None

    def remove(self, fingerprint: str, tenant: str) -> None:
        """Forget a subject. Other processes may use what they keep in memory a while longer.

        Raises:
            StorageError: It cannot be removed.
        """
        self.drop(fingerprint, tenant)
        try:
            self._files.rm_file(self._path(tenant, fingerprint))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(
                f"cannot remove a subject at {self.url}: {_reason(error)}"
            ) from error

    def drop(self, fingerprint: str, tenant: str) -> None:
        """Forget a subject in the memory of this process alone."""
        with self._lock:
            self._kept.pop((tenant, fingerprint), None)

    def drop_unused(self) -> None:
        """Forget those in the memory of this process that it has not used for their time."""
        oldest = time.time() - self._ttl_s
        with self._lock:
            while self._kept and next(iter(self._kept.values())).used_at <= oldest:
                self._kept.popitem(last=False)

    def drop_expired(self) -> None:
        """Forget subjects that nobody has drawn for their time. Cheap to call often.

        Raises:
            StorageError: The files cannot be listed or removed now.
        """
        self.drop_unused()
        now = time.time()
        if now < self._look_at:
            return
        self._look_at = now + _LOOKED_AT_EVERY * self._ttl_s
        oldest = now - (1 + _RENEWED_AFTER) * self._ttl_s
        try:
            for path in self._files.find(self._root):
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    if path.endswith(".subject") and self._written_at(path) <= oldest:
                        self._files.rm_file(path)
        except FileNotFoundError:  # nothing was put yet
            return
        except OSError as error:
            text = f"cannot remove old subjects at {self.url}: {_reason(error)}"
            raise StorageError(text) from error
        except NotImplementedError:
            self._look_at = float("inf")
            logger.warning("%s does not tell how old files are; let it remove them", self.url)

    def _written_at(self, path: str) -> float:
        when = self._files.modified(path)
        return float((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())

    def _write(self, path: str, subject: Subject) -> None:
        if self._is_local:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            subject.save(target)  # appears whole or not at all
            return
        with tempfile.TemporaryDirectory(prefix="bootpig-subject-") as folder:
            local = Path(folder) / "subject"
            subject.save(local)
            # Objects appear whole when their upload ends.
            self._files.pipe_file(path, local.read_bytes())

    def _read(self, path: str) -> Subject:
        if self._is_local:
            return Subject.load(_existing(Path(path)), max_bytes=MAX_FILE_BYTES)
        size = self._files.size(path)
        if size is not None and size > MAX_FILE_BYTES:
            raise StorageError(f"a subject of {size} bytes, expected at most {MAX_FILE_BYTES}")
        with tempfile.TemporaryDirectory(prefix="bootpig-subject-") as folder:
            local = Path(folder) / "subject"
            local.write_bytes(self._files.cat_file(path))
            return Subject.load(local, max_bytes=MAX_FILE_BYTES)

    def _path(self, tenant: str, fingerprint: str) -> str:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ParameterError(f"{fingerprint[:80]!r} is not the fingerprint of a subject")
        whose = hashlib.sha256(tenant.encode()).hexdigest()[:16]
        return f"{self._root}/{whose}/{fingerprint}.subject"

    def _known(self, tenant: str, fingerprint: str) -> _Kept | None:
        self.drop_unused()
        with self._lock:
            kept = self._kept.get((tenant, fingerprint))
            if kept is not None:
                kept.used_at = time.time()
                self._kept.move_to_end((tenant, fingerprint))
            return kept

    def _keep(self, tenant: str, subject: Subject, *, put_at: float = 0.0) -> None:
        with self._lock:
            self._kept[tenant, subject.fingerprint] = _Kept(subject, time.time(), put_at)
            self._kept.move_to_end((tenant, subject.fingerprint))
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)


def _existing(path: Path) -> Path:
    path.stat()
    return path


def _local_kind() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
