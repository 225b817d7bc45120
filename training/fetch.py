"""From pinned packages to sprites: the steps of `bootpig-rt fetch-data`.

Each step leaves its result on disk and is skipped when that is there, so an interrupted run goes
on where it stopped. The folder holds `packages/` (archives), the sprites, and `fetch.json`, which
tells what they were made from and is written last.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training import splits
from bootpig_rt.training.art_packages import fetch_archive
from bootpig_rt.training.emoji import (
    DRAWINGS_FILE,
    ArtSource,
    Drawing,
    load_drawings,
    load_sources,
    read_svgs,
)
from bootpig_rt.training.raster import SPRITE_PX
from bootpig_rt.training.sprites import FORMAT, LIST_FILE, PIXELS_FILE, render_sprites

RECORD_FILE = "fetch.json"
MIN_STYLES = 4
MAX_SPRITE_PX = 960

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def fetch_data(
    folder: Path,
    *,
    from_folder: Path | None = None,
    sources: Sequence[ArtSource] | None = None,
    drawings: Sequence[Drawing] | None = None,
    sprite_px: int = SPRITE_PX,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the sprites of the small world in a folder.

    Args:
        folder: Data folder, made if need be.
        from_folder: Where the archives are; without it, `npm` fetches them.
        sources: The packages; the pinned ones by default.
        drawings: What is taken from them; all that is known of their styles by default.
        sprite_px: Side of rendered drawings, a multiple of 24.
        workers: Number of processes that render, at least 1.
        on_progress: Called as the work goes on.

    Returns:
        `folder`, `identities`, `concepts`, `styles`, `splits` and `rejects` (counts by name).

    Raises:
        ParameterError: `workers` is below 1, or `sprite_px` cannot be.
        InputError: `from_folder` lacks an archive.
        BackendUnavailable: `npm` or `resvg_py` is missing.
        StorageError: A fetch failed, a checksum differs, or the folder cannot be written.
    """
    if workers < 1:
        raise ParameterError(f"workers is {workers}, expected at least 1")
    if not 24 <= sprite_px <= MAX_SPRITE_PX or sprite_px % 24:
        raise ParameterError(
            f"sprite_px is {sprite_px}, expected a multiple of 24 from 24 to {MAX_SPRITE_PX}"
        )
    sources = load_sources() if sources is None else sources
    key = _key_of(sources, sprite_px)
    summary = _finished(folder, key)
    if summary is not None:
        return summary

    def report(stage: str, done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(stage, done, total)

    if drawings is None:
        drawings = load_drawings([source.style for source in sources])
    svgs: dict[Drawing, str] = {}
    for done, source in enumerate(sources):
        report("packages", done, len(sources))
        archive = fetch_archive(source, folder / "packages", from_folder=from_folder)
        own = [drawing for drawing in drawings if drawing.style == source.style]
        found = read_svgs(archive, [drawing.icon for drawing in own])
        svgs.update(zip(own, found, strict=True))
    report("packages", len(sources), len(sources))
    rendered = 0

    def on_rendered(count: int) -> None:
        nonlocal rendered
        rendered += count
        report("drawings", rendered, len(drawings))

    rejects = render_sprites(
        drawings,
        [svgs[drawing] for drawing in drawings],
        folder,
        split_of=splits.load_splits().split_of,
        min_styles=MIN_STYLES,
        sprite_px=sprite_px,
        workers=workers,
        on_progress=on_rendered,
    )
    record = {
        "format": FORMAT,
        "key": key,
        "files": {name: measure(folder / name)[1] for name in (PIXELS_FILE, LIST_FILE)},
        "rejects": rejects,
    }
    atomic_write_text(folder / RECORD_FILE, json.dumps(record, indent=1) + "\n")
    return _summary(folder, rejects)


def _key_of(sources: Sequence[ArtSource], sprite_px: int) -> str:
    """Fingerprint of everything that the sprites depend on."""
    digest = hashlib.sha256(json.dumps([asdict(source) for source in sources]).encode())
    for path in (DRAWINGS_FILE, *sorted(splits.FOLDER.glob("*.json"))):
        digest.update(path.read_bytes())
    try:
        renderer = importlib.metadata.version("resvg-py")
    except importlib.metadata.PackageNotFoundError:
        renderer = "none"
    size = "" if sprite_px == SPRITE_PX else f" {sprite_px}"
    digest.update(f"{FORMAT} {MIN_STYLES} {renderer}{size}".encode())
    return digest.hexdigest()


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The summary of a finished run with the same inputs, None if the work is to be done."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        whole = record["key"] == key and all(
            measure(folder / name)[1] == digest for name, digest in record["files"].items()
        )
        return _summary(folder, record["rejects"]) if whole else None
    except (OSError, CheckpointError, ValueError, KeyError, TypeError):
        return None


def _summary(folder: Path, rejects: dict[str, int]) -> dict[str, Any]:
    entries = json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))
    return {
        "folder": str(folder),
        "identities": len(entries),
        "concepts": len({entry["concept"] for entry in entries}),
        "styles": len({entry["style"] for entry in entries}),
        "splits": splits.counts_by_split(entries),
        "rejects": rejects,
    }
