"""Compiled models and choices kept in files: written whole or not at all, never trusted unread.

A file is a line of json, which says what was compiled and the sha256 of the rest, and the rest:
what OpenVINO exported. Knows nothing about graphs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.files import CACHE
from bootpig_rt.bundle.shipped import is_put_together
from bootpig_rt.errors import StorageError, one_line
from bootpig_rt.files.atomic import atomic_write

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 1 << 16


class BlobCache:
    """Compiled models of one pair.

    Args:
        folders: Where they may lie, best first; the first that can be written to gets new ones.
        facts: What all of them depend on: versions, processor, precision, threads.
    """

    def __init__(self, folders: tuple[Path, ...], facts: Mapping[str, Any]) -> None:
        """Nothing is read yet."""
        self._folders = folders
        self._facts = dict(facts)

    def read(self, name: str, more: Mapping[str, Any]) -> bytes | None:
        """The model of these facts, or None if it has to be compiled.

        Args:
            name: Of the graph.
            more: What this one depends on beside the facts of all: its graph and shapes.
        """
        says, file = self._header(name, more)
        for folder in self._folders:
            path = folder / file
            try:
                with path.open("rb") as stream:
                    header = stream.readline(_MAX_HEADER_BYTES)
                    blob = stream.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("kept file %s cannot be read (%s); made again", path, error)
                continue
            if _is_whole(header, blob, says):
                return blob
            logger.warning("kept file %s is damaged; made again", path)
        return None

    def write(self, name: str, more: Mapping[str, Any], blob: bytes) -> None:
        """Keep a model for the next process; where that cannot be, say so and go on."""
        says, file = self._header(name, more)
        header = {**says, "sha256": hashlib.sha256(blob).hexdigest()}
        problem = "no folder is known"
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(folder / file) as stream:
                    stream.write(json.dumps(header, sort_keys=True).encode() + b"\n")
                    stream.write(blob)
            except (OSError, StorageError) as error:
                problem = one_line(str(error))
                continue
            return
        if self._folders:
            logger.info("the file of %s is not kept: %s", name, problem)

    def _header(self, name: str, more: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """What a file of these facts begins with, but for its sha256; and its name."""
        says = json.loads(json.dumps({"graph": name, **self._facts, **more}, sort_keys=True))
        digest = hashlib.sha256(json.dumps(says, sort_keys=True).encode()).hexdigest()
        return says, f"{name}-{digest[:20]}.blob"


def user_folder() -> Path:
    """Where programs of this user keep what they can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bootpig-rt" / "openvino"


def cache_folders(bundle: Bundle, named: Path | None) -> tuple[Path, ...]:
    """Where files of a bundle are kept: as told, in the bundle, or with the user's other caches.

    Nobody signed what lies in the bundle's own cache. So where a signature was demanded, only a
    folder that was named is read.

    Args:
        bundle: Whose.
        named: By whoever loads it.
    """
    if named is not None:
        return (named,)
    if bundle.is_trusted:
        return ()
    of_user = user_folder() / bundle.manifest.pair.fingerprint[:16]
    if is_put_together(bundle.folder):  # it goes with this process
        return (of_user,)
    return (bundle.folder / CACHE, of_user)


def _is_whole(header: bytes, blob: bytes, says: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or {k: v for k, v in found.items() if k != "sha256"} != says:
        return False
    return bool(found.get("sha256") == hashlib.sha256(blob).hexdigest())
