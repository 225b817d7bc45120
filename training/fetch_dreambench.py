"""DreamBench's photographs, prompts and licences, from the public repository at a pinned commit.

Every file's size and sha256 are pinned; a file that differs is not kept. Photographs are stored as
JPEG with sides of 512 px, which no encoder of the protocol sees more of. They are for evaluation
alone: nothing here feeds a training.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import msgspec
from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.checks import check_int
from bootpig_rt.errors import CheckpointError, ParameterError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes, atomic_write_text
from bootpig_rt.images.image_input import load_image

logger = logging.getLogger(__name__)

LIST_FILE = Path(__file__).with_name("dreambench_files.json")
RECORD_FILE = "fetch.json"
SIZE_PX = 512
QUALITY = 88

_URL = "https://raw.githubusercontent.com/{repository}/{commit}"
_SCHEMES = ("https://", "http://", "file://")
_TRIES = 3
_TIMEOUT_S = 60
_PAUSE_S = 1.0


class PinnedFiles(msgspec.Struct, frozen=True):
    """The repository, its commit, and size and sha256 of each file that is taken."""

    repository: str
    commit: str
    licence: str
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class FetchedBench:
    """What a fetch left.

    Attributes:
        folder: Where it is.
        photographs: How many.
        fetched: Files that were not there before.
        size_px: Of the photographs' sides; 0 as published.
        commit: Of the repository.
    """

    folder: str
    photographs: int
    fetched: int
    size_px: int
    commit: str


def load_pinned() -> PinnedFiles:
    """The files that are taken."""
    return msgspec.json.decode(LIST_FILE.read_bytes(), type=PinnedFiles)


def fetch_dreambench(
    folder: Path,
    *,
    url: str | None = None,
    size_px: int = SIZE_PX,
    workers: int = 4,
    pinned: PinnedFiles | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FetchedBench:
    """Have the benchmark in a folder; what is there already is not fetched again.

    Args:
        folder: Made if need be.
        url: Of a copy of the repository at the pinned commit, `https`, `http` or `file`; the public
            one by default.
        size_px: Sides of the photographs; 0 keeps them as they are published.
        workers: Files fetched at once.
        pinned: What is taken; the pinned files by default.
        on_progress: Told how many files are done, and of how many.

    Raises:
        ParameterError: Another kind of address, or a number out of range.
        StorageError: A file could not be fetched or written, or is not the pinned one.
    """
    pinned = load_pinned() if pinned is None else pinned
    workers = check_int("--workers", workers, 1, 32, "4 is usual")
    if size_px:
        check_int("--size-px", size_px, 64, 4096, "512 is usual, 0 keeps the originals")
    if url is None:
        url = _URL.format(repository=pinned.repository, commit=pinned.commit)
    if not url.startswith(_SCHEMES):
        raise ParameterError(f"address is {url!r}, expected one of {', '.join(_SCHEMES)}...")
    record = _Record(folder, f"{pinned.commit} {size_px}")
    missing = [path for path in pinned.files if not record.has(path)]
    done, lock = len(pinned.files) - len(missing), Lock()

    def take(path: str) -> None:
        nonlocal done
        content = _fetch(f"{url.rstrip('/')}/{path}", *pinned.files[path])
        if path.endswith(".jpg") and size_px:
            content = _resized(content, size_px, path)
        record.keep(path, content)
        with lock:
            done += 1
            if on_progress is not None:
                on_progress(done, len(pinned.files))

    if on_progress is not None:
        on_progress(done, len(pinned.files))
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for _ in pool.map(take, missing):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    photographs = sum(path.endswith(".jpg") for path in pinned.files)
    return FetchedBench(str(folder), photographs, len(missing), size_px, pinned.commit)


class _Record:
    """Which files are there, with the sha256 of each as written; kept beside them."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key, self._lock = folder, key, Lock()
        self._files: dict[str, str] = {}
        try:
            told = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            if told["key"] == key:
                self._files = {str(name): str(digest) for name, digest in told["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # not there, or damaged: everything is fetched again

    def has(self, path: str) -> bool:
        try:
            return measure(self._folder / path)[1] == self._files[path]
        except (KeyError, CheckpointError):
            return False

    def keep(self, path: str, content: bytes) -> None:
        target = self._folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write {target.parent}: {describe_os_error(error)}"
            ) from error
        atomic_write_bytes(target, content)
        with self._lock:
            self._files[path] = hashlib.sha256(content).hexdigest()
            told = {"key": self._key, "files": self._files}
            atomic_write_text(self._folder / RECORD_FILE, json.dumps(told, indent=1) + "\n")


def _fetch(address: str, num_bytes: int, sha256: str) -> bytes:
    """A file's bytes once they are known to be the pinned ones."""
    for attempt in range(1, _TRIES + 1):
        try:
            # The address is of one of three schemes: checked above.
            with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read(num_bytes + 1)
            break
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors
            is_last = attempt == _TRIES or _is_final(error)
            if is_last:
                reason = " ".join(str(error).split())[:200]
                raise StorageError(
                    f"could not fetch {address} ({reason}); check the network and run again, what "
                    "is fetched is kept, or clone the repository and give --from-folder"
                ) from error
            logger.warning("fetching %s failed (%s), trying again", address, error)
            time.sleep(attempt * _PAUSE_S)
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != num_bytes or digest != sha256:
        raise StorageError(
            f"{address} is not the pinned file: {len(content)} bytes, sha256 {digest[:12]}, "
            f"expected {num_bytes} and {sha256[:12]}; take it from the pinned commit"
        )
    return content


def _is_final(error: Exception) -> bool:
    """Whether trying again is in vain: the file is not there, or may not be read."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code != 429
    reason = getattr(error, "reason", error)
    return isinstance(reason, FileNotFoundError | PermissionError | IsADirectoryError | ValueError)


def _resized(content: bytes, size_px: int, path: str) -> bytes:
    """A photograph upright, its longer side at most `size_px`, as JPEG without metadata."""
    image = load_image(content, what=path).convert("RGB")
    longest = max(image.size)
    if longest > size_px:
        size = [max(1, round(side * size_px / longest)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()
