"""Fetches the pinned packages of drawings and checks them.

A package is fetched by its name and version with the `npm` client, as a plain archive: nothing of
it is installed or run. Its sha256 must equal the pinned one before it is opened. This file knows
nothing about what the drawings show.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import BackendUnavailable, InputError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.emoji import ArtSource

logger = logging.getLogger(__name__)

NPM_TIMEOUT_S = 600


def fetch_archive(source: ArtSource, folder: Path, *, from_folder: Path | None = None) -> Path:
    """Have a pinned package's archive, whole and checked, in a folder.

    It comes from `from_folder`, or else `npm` fetches it. One that is already there with the right
    checksum is kept, so a second run fetches only what is missing.

    Raises:
        InputError: `from_folder` lacks the archive.
        BackendUnavailable: `npm` is not installed.
        StorageError: The fetch failed, the checksum differs, or the folder cannot be written.
    """
    path = folder / source.archive
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and measure(path)[1] == source.sha256:
            return path
        if from_folder is not None:
            _take_archive(source, from_folder / source.archive, path)
        else:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
                _take_archive(source, _npm_pack(source, Path(scratch)), path)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot fetch into {folder}: {describe_os_error(error)}") from error
    return path


def _take_archive(source: ArtSource, found: Path, path: Path) -> None:
    """Copy an archive to its place once its checksum is known to be right."""
    if not found.is_file():
        raise InputError(
            f"{found.parent} has no file {source.archive}; put {source.package} {source.version} "
            "there under that name, or leave out --from-folder to fetch it with npm"
        )
    data = found.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise StorageError(
            f"{source.archive} is not the pinned package: sha256 is {digest}, expected "
            f"{source.sha256}; delete the file and fetch it again"
        )
    atomic_write_bytes(path, data)


def _npm_pack(source: ArtSource, scratch: Path) -> Path:
    """Let npm fetch the archive of one version, without installing or running anything of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise BackendUnavailable(
            "fetching the drawings needs npm, which was not found; install it (Debian and Ubuntu: "
            "`sudo apt-get install npm`), or download the archives that training/art_sources.json "
            "names and pass --from-folder DIR"
        )
    spec = f"{source.package}@{source.version}"
    logger.info("fetching %s", spec)
    command = [npm, "pack", spec, "--ignore-scripts", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"npm did not fetch {spec} within {NPM_TIMEOUT_S} s; check the network and run again, "
            "what is fetched already is kept"
        ) from error
    archives = sorted(scratch.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise StorageError(
            f"npm could not fetch {spec}: {reason}; check the network and run again, or pass "
            "--from-folder DIR with archives fetched elsewhere"
        )
    return archives[0]
