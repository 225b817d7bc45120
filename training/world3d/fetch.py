"""Fetches the pinned repositories of models: `bootpig-rt fetch-data --set models-3d`.

Git fetches one commit, nothing of it is run, and only the files that `sources.json` names are
written. A source's folder is there whole or not at all, so an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import BackendUnavailable, InputError, StorageError, describe_os_error
from bootpig_rt.training.folder_claim import only_writer
from bootpig_rt.training.world3d.sources import Source, digest_of, load_model_sources

logger = logging.getLogger(__name__)

GIT_TIMEOUT_S = 1800

Progress = Callable[[str, int, int], None]
"""Called with a source's key, how many sources are done, and how many there are."""


@dataclass(frozen=True)
class Fetched:
    """What is in a folder of models: `fetched` sources were not there before."""

    folder: Path
    sources: int
    files: int
    fetched: int


def fetch_models(
    folder: Path,
    *,
    from_folder: Path | None = None,
    sources: Sequence[Source] | None = None,
    on_progress: Progress | None = None,
) -> Fetched:
    """Have all sources in a folder, whole and checked.

    Args:
        folder: Made if need be; each source gets a folder of its key in it.
        from_folder: Has clones or bare copies of the repositories; without it, GitHub is asked.
        sources: The pinned ones by default.
        on_progress: Called as the work goes on.

    Raises:
        InputError: `from_folder` lacks a repository or its commit.
        BackendUnavailable: git is missing.
        StorageError: A fetch failed, files differ from the pinned ones, or the folder cannot be
            written.
    """
    if shutil.which("git") is None:
        raise BackendUnavailable(
            "fetching models needs git, which was not found; install it (Debian and Ubuntu: "
            "`sudo apt-get install git`)"
        )
    sources = load_model_sources() if sources is None else sources
    fetched = 0
    with only_writer(folder):
        for done, source in enumerate(sources):
            if on_progress:
                on_progress(source.key, done, len(sources))
            try:
                if not _is_whole(folder / source.key, source):
                    _fetch(source, folder, from_folder)
                    fetched += 1
            except OSError as error:
                raise StorageError(
                    f"cannot write {folder / source.key}: {describe_os_error(error)}"
                ) from error
    if on_progress:
        on_progress("", len(sources), len(sources))
    return Fetched(folder, len(sources), sum(source.num_files for source in sources), fetched)


def _is_whole(folder: Path, source: Source) -> bool:
    """Whether a source's files are all there, and are the pinned ones."""
    if not folder.is_dir():
        return False
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(paths) != source.num_files:
        return False
    named = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
    return digest_of(named) == source.sha256


def _fetch(source: Source, folder: Path, from_folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        if from_folder is None:
            repository = _clone(source, Path(scratch) / "git")
        else:
            repository = _find_copy(source, from_folder)
        files = dict(_read_files(source, repository))
        digest = digest_of(files.items())
        if (len(files), digest) != (source.num_files, source.sha256):
            raise StorageError(
                f"{source.repository} at {source.commit[:12]} is not what was pinned: "
                f"{len(files)} files with sha256 {digest}, expected {source.num_files} with "
                f"{source.sha256}; fetch it again, or report it if that does not help"
            )
        staged = Path(scratch) / "files"
        for name, data in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        target = folder / source.key
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)


def _clone(source: Source, repository: Path) -> Path:
    """Fetch one commit without its history; the repository."""
    url = f"https://github.com/{source.repository}.git"
    logger.info("fetching %s at %s", url, source.commit[:12])
    _git(source, ["init", "--quiet", "--bare", str(repository)])
    _git(source, ["-C", str(repository), "fetch", "--quiet", "--depth=1", url, source.commit])
    return repository


def _find_copy(source: Source, folder: Path) -> Path:
    """The git directory of a copy: a clone or a bare one, called by its name or by both names."""
    owner, _, name = source.repository.partition("/")
    for part in (name, f"{name}.git", f"{owner}/{name}", f"{owner}+{name}", source.key):
        for place in (folder / part, folder / part / "repo"):
            for found in (place / ".git", place):
                if (found / "HEAD").is_file() and (found / "objects").is_dir():
                    return found
    raise InputError(
        f"{folder} has no copy of {source.repository}; clone it there, or leave out --from-folder "
        "to fetch it with git"
    )


def _read_files(source: Source, repository: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file that a source takes."""
    git = [f"--git-dir={repository}"]
    listed = _git(source, [*git, "ls-tree", "-r", "-z", source.commit])
    wanted = []
    for line in listed.split(b"\0"):
        meta, _, path = line.decode("utf-8", "replace").partition("\t")
        words = meta.split()
        if len(words) == 3 and words[0] in ("100644", "100755") and source.takes(path):
            wanted.append((words[2], path))
    # Objects are read through one process; one that a partial copy lacks is said to be missing.
    names = "".join(f"{digest}\n" for digest, _ in wanted).encode()
    data, at = _git(source, [*git, "cat-file", "--batch"], names), 0
    for _, path in wanted:
        end = data.index(b"\n", at)
        words = data[at:end].decode().split()
        if len(words) != 3:
            raise StorageError(
                f"the copy of {source.repository} lacks {path}; fetch it again, whole"
            )
        size = int(words[2])
        yield path, data[end + 1 : end + 1 + size]
        at = end + 2 + size


def _git(source: Source, arguments: list[str], data: bytes | None = None) -> bytes:
    advice = "check the network and run again, what is fetched already is kept"
    try:
        done = subprocess.run(
            ["git", *arguments], input=data, capture_output=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"git did not fetch {source.repository} within {GIT_TIMEOUT_S} s; {advice}"
        ) from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise StorageError(
            f"git could not read {source.repository} at {source.commit[:12]}: {reason}; {advice}, "
            "or pass --from-folder DIR with copies of the repositories"
        )
    return done.stdout
