"""The files of a bundle: listed, measured, and compared with what a manifest says of them.

Knows paths, sizes and hashes, not what the files are for.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from bootpig_rt.bundle.manifest import FileInfo, Manifest
from bootpig_rt.errors import BundleError, describe_os_error, shown

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

CACHE = ".openvino"
"""Folder of compiled models; hidden, so that it is no part of what the manifest lists."""

REBUILD = "copy the bundle again, or build it again with: bootpig-rt build-engine"
"""What to do about a file that is not as it should be."""

_CHUNK_BYTES = 1 << 20
_MAX_SMALL_BYTES = 16 << 20

# Longer ones are none that a file system has: it would raise errors of its own.
_MAX_NAME_BYTES, _MAX_PATH_CHARS = 255, 1024

# Texts for people, which nothing loads; they may lie beside the files of a bundle unlisted.
_UNLISTED_SUFFIXES = (".md",)


def list_files(folder: str | os.PathLike[str]) -> tuple[FileInfo, ...]:
    """Size and sha256 of every file of a bundle that is being built, sorted by path.

    Hidden files, texts for people and the manifest itself are left out.

    Raises:
        BundleError: A symbolic link, or a file that cannot be read.
    """
    folder = Path(folder)
    infos = []
    for path in _walk(folder):
        full = folder / path
        if full.is_symlink():
            raise BundleError(f"{full} is a symbolic link, expected a file; copy it here", full)
        infos.append(FileInfo(path, *measure(full)))
    return tuple(infos)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare a folder with the list of files of its manifest.

    Raises:
        BundleError: A file is missing, added, changed, or a symbolic link.
    """
    listed = {file.path for file in manifest.files}
    for path in _walk(folder):
        # Nobody vouches for it, and a loader might prefer it to a file that is listed.
        if path not in listed:
            raise BundleError(
                f"{folder / path} is not in the manifest of the bundle; remove it, or build the "
                "bundle again with it",
                folder / path,
            )
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda file: _check_file(folder, file), manifest.files):
            pass


def check_paths(folder: Path, manifest: Manifest) -> None:
    """Refuse paths that leave the folder or lead through a link, and lists that disagree.

    Raises:
        BundleError: Names the path.
    """
    by_path: dict[str, FileInfo] = {}
    for file in manifest.files:
        _check_path(folder, file.path)
        if file.path in by_path or file.path in (MANIFEST, SIGNATURE):
            raise BundleError(
                f"{folder / MANIFEST} must not list {shown(file.path)}"
                f"{' twice' if file.path in by_path else ''}; {REBUILD}",
                folder,
            )
        by_path[file.path] = file
    of_variants = (graph for variant in manifest.variants for graph in variant.graphs)
    for graph in (*manifest.graphs, *of_variants):
        if by_path.get(graph.file) != FileInfo(graph.file, graph.size_bytes, graph.sha256):
            raise BundleError(
                f"{folder / MANIFEST}: graph {graph.name!r} and the list of files disagree about "
                f"{graph.file!r}; {REBUILD}",
                folder,
            )
    weights, others = split_pair_files(manifest.files)
    for what, files, said in (
        ("weights", weights, manifest.pair.weights_sha256),
        ("configuration", others, manifest.pair.config_sha256),
    ):
        # Engines hold their weights inside: then there is no file to compare with.
        if files and digest_files(files) != said:
            raise BundleError(
                f"{folder}: the {what} files are not those of the pair that the graphs were built "
                "from; build it again with: bootpig-rt build-engine",
                folder,
            )


def digest_files(files: Iterable[FileInfo]) -> str:
    """sha256 over paths and hashes of files, in the order of their paths."""
    lines = sorted(f"{file.path} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_pair_files(files: Iterable[FileInfo]) -> tuple[list[FileInfo], list[FileInfo]]:
    """The files of the pair in a bundle: (weights, configuration). Graphs are neither."""
    weights: list[FileInfo] = []
    others: list[FileInfo] = []
    for file in files:
        if file.path.endswith(".safetensors"):
            weights.append(file)
        elif "/" in file.path or file.path == "pair.json":
            others.append(file)
    return weights, others


def measure(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file.

    Raises:
        BundleError: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {describe_os_error(error)}", path) from error
    return size, digest.hexdigest()


def read_small(path: Path) -> bytes:
    """A manifest or signature: a plain file of sensible length.

    Raises:
        BundleError: Missing, a link, no file, or too long.
    """
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link, expected a file; {REBUILD}", path)
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SMALL_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is missing, so this is no finished bundle; build it with: "
            "bootpig-rt build-engine",
            path,
        ) from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {describe_os_error(error)}", path) from error
    if len(data) > _MAX_SMALL_BYTES:
        raise BundleError(f"{path} is over {_MAX_SMALL_BYTES >> 20} MiB; {REBUILD}", path)
    return data


def _walk(folder: Path) -> list[str]:
    """Paths of the files that a manifest lists, sorted, with forward slashes."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and not _is_ignored(name)]
        for name in (*names, *links):
            path = (Path(root) / name).relative_to(folder).as_posix()
            if not _is_ignored(name) and path not in (MANIFEST, SIGNATURE):
                found.append(path)
    return sorted(found)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.endswith(_UNLISTED_SUFFIXES) or name == "__pycache__"


def _check_path(folder: Path, path: str) -> None:
    pure = PurePosixPath(path)
    is_odd = not path or pure.is_absolute() or str(pure) != path or ".." in pure.parts
    is_long = len(path) > _MAX_PATH_CHARS or any(
        len(part.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES for part in pure.parts
    )
    if is_odd or is_long or re.search(r"[\\:\0]", path):
        raise BundleError(
            f"{folder / MANIFEST} names {shown(path)}, expected a path within the folder; "
            "do not use this bundle",
            folder,
        )
    place = folder
    for part in pure.parts:
        place = place / part
        if place.is_symlink():
            raise BundleError(
                f"{place} is a symbolic link, expected a file of the bundle; copy the bundle "
                "again with its links followed: cp -rL",
                place,
            )


def _check_file(folder: Path, file: FileInfo) -> None:
    path = folder / file.path
    if not path.is_file():
        raise BundleError(f"{path} is missing; {REBUILD}", path)
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:  # said before gigabytes are read
        raise BundleError(
            f"{path} has {size_bytes} bytes, expected {file.size_bytes}; {REBUILD}", path
        )
    if measure(path)[1] != file.sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its sha256 is not that of the manifest; {REBUILD}",
            path,
        )
