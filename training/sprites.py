"""Drawings as pixels, kept on disk: renders all, drops what cannot be used, counts why.

Drawings that are empty, thin or tiny, or fill a square like a framed picture are rejected, and so
is a drawing that repeats another style's drawing of the same concept: then two identities would be
one. Rendering is cut into chunks that are kept on disk, so an interrupted run goes on where it
stopped and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.emoji import Drawing, IconSet
from bootpig_rt.training.raster import (
    SPRITE_PX,
    SUBJECT_PX,
    Pixels,
    draw_sprite,
    drawing_distance,
    fault_of,
)

CHUNK = 64
FORMAT = 1
PIXELS_FILE = "sprites.npz"
LIST_FILE = "sprites.json"

DUPLICATE_DISTANCE = 0.085
"""Two drawings of a concept closer than this (see `drawing_distance`) are one identity."""


@dataclass(frozen=True)
class Sprite:
    """One identity: what it shows, who drew it, which split it belongs to, and its pixels.

    Attributes:
        drawing: Concept, style, icon, noun and category.
        split: "train", "held_out_identity" or "held_out_concept".
        rgba: uint8 [SPRITE_PX, SPRITE_PX, 4], straight alpha, colour 0 where alpha is 0.
    """

    drawing: Drawing
    split: str
    rgba: Pixels


def render_all(
    svgs: Sequence[str],
    folder: Path,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Render drawings in chunks that survive an interruption.

    Args:
        svgs: SVG documents.
        folder: Where finished chunks are kept; one whose drawings have changed is made anew.
        workers: Number of processes.
        on_progress: Called with the number of drawings just finished.

    Returns:
        uint8 [len(svgs), SPRITE_PX, SPRITE_PX, 4]. A drawing that is not valid SVG is left empty.

    Raises:
        StorageError: A chunk cannot be written.
    """
    sprites = np.zeros((len(svgs), SPRITE_PX, SPRITE_PX, 4), dtype=np.uint8)
    chunks = {start: list(svgs[start : start + CHUNK]) for start in range(0, len(svgs), CHUNK)}
    todo = []
    for start, chunk in chunks.items():
        path = _chunk_path(folder, chunk)
        stored = _read_chunk(path, len(chunk))
        if stored is None:
            todo.append(start)
            continue
        sprites[start : start + len(chunk)] = stored
        if on_progress is not None:
            on_progress(len(chunk))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {describe_os_error(error)}") from error
    for start, pixels in _render_chunks({start: chunks[start] for start in todo}, workers):
        atomic_write_bytes(_chunk_path(folder, chunks[start]), _npy_bytes(pixels))
        sprites[start : start + len(pixels)] = pixels
        if on_progress is not None:
            on_progress(len(pixels))
    return sprites


def _render_chunks(chunks: Mapping[int, list[str]], workers: int) -> Iterator[tuple[int, Pixels]]:
    if workers <= 1 or len(chunks) <= 1:
        for start, chunk in chunks.items():
            yield start, _render_chunk(chunk)
        return
    # Fresh processes: a fork would copy the threads' locks of whatever the caller has running.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=workers, mp_context=context)
    try:
        yield from zip(chunks, pool.map(_render_chunk, chunks.values()), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _render_chunk(svgs: list[str]) -> Pixels:
    sprites = np.zeros((len(svgs), SPRITE_PX, SPRITE_PX, 4), dtype=np.uint8)
    for row, svg in enumerate(svgs):
        try:
            sprites[row] = draw_sprite(svg)
        except (
            ValueError
        ):  # resvg's word for a broken document: the sprite stays empty, is rejected
            continue
    return sprites


def _chunk_path(folder: Path, svgs: Iterable[str]) -> Path:
    digest = hashlib.sha256(f"{FORMAT} {SPRITE_PX} {SUBJECT_PX}".encode())
    for svg in svgs:
        digest.update(svg.encode())
        digest.update(b"\0")
    return folder / f"{digest.hexdigest()[:24]}.npy"


def _read_chunk(path: Path, length: int) -> Pixels | None:
    try:
        with path.open("rb") as stream:
            pixels: Pixels = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = pixels.shape == (length, SPRITE_PX, SPRITE_PX, 4) and pixels.dtype == np.uint8
    return pixels if whole else None


def _npy_bytes(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def choose_rows(
    drawings: Sequence[Drawing], sprites: Pixels, *, min_styles: int = 4
) -> tuple[list[int], Counter[str]]:
    """Decide which drawings to keep.

    Args:
        drawings: N identities; within a concept, an earlier style wins over its repetition.
        sprites: uint8 [N, SPRITE_PX, SPRITE_PX, 4].
        min_styles: Concepts with fewer usable styles are left out.

    Returns:
        Rows that are kept, ascending, and the number of rejected drawings for each reason.
    """
    rejects: Counter[str] = Counter()
    rows_of: dict[str, list[int]] = {}
    faults = [fault_of(rgba) for rgba in sprites]
    framed = Counter(d.concept for d, f in zip(drawings, faults, strict=True) if f == "framed")
    total = Counter(d.concept for d in drawings)
    for row, drawing in enumerate(drawings):
        kept = rows_of.setdefault(drawing.concept, [])
        fault = faults[row]
        if 2 * framed[drawing.concept] > total[drawing.concept]:
            rejects["framed concept"] += 1
        elif fault is not None:
            rejects[fault] += 1
        elif any(drawing_distance(sprites[row], sprites[k]) < DUPLICATE_DISTANCE for k in kept):
            rejects["same drawing"] += 1
        else:
            kept.append(row)
    rows: list[int] = []
    for kept in rows_of.values():
        if len(kept) >= min_styles:
            rows += kept
        elif kept:
            rejects["too few styles"] += len(kept)
    return sorted(rows), rejects


def render_sprites(
    drawings: Sequence[Drawing],
    sets: Mapping[str, IconSet],
    folder: Path,
    *,
    split_of: Callable[[str, str], str],
    min_styles: int = 4,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Render drawings and write `sprites.npz` and `sprites.json` into a folder.

    Args:
        drawings: What `join_concepts` found.
        sets: Style to icon set.
        folder: Data folder; finished chunks are kept in its `sprites.partial` until all is done.
        split_of: Split of a (concept, style).
        min_styles: Concepts with fewer usable styles are left out.
        workers: Number of processes.
        on_progress: Called with the number of drawings just finished.

    Returns:
        Rejected drawings by reason.

    Raises:
        StorageError: The folder cannot be written.
    """
    svgs = [sets[d.style].svg(d.icon) for d in drawings]
    partial = folder / "sprites.partial"
    pixels = render_all(svgs, partial, workers=workers, on_progress=on_progress)
    rows, rejects = choose_rows(drawings, pixels, min_styles=min_styles)
    entries = [
        {**asdict(drawings[row]), "split": split_of(drawings[row].concept, drawings[row].style)}
        for row in rows
    ]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rgba=pixels[rows])
    # The list is written last: where it stands, the pixels are whole.
    (folder / LIST_FILE).unlink(missing_ok=True)
    atomic_write_bytes(folder / PIXELS_FILE, buffer.getvalue())
    atomic_write_bytes(folder / LIST_FILE, json.dumps(entries, indent=0).encode())
    shutil.rmtree(partial, ignore_errors=True)
    return dict(rejects)


def load_sprites(folder: Path) -> list[Sprite]:
    """Read what `render_sprites` wrote.

    Raises:
        StorageError: A file is missing or damaged, or the two do not belong together.
    """
    advice = "run `bootpig-rt fetch-data`"
    try:
        entries = json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))
        with (folder / PIXELS_FILE).open("rb") as stream:
            pixels: Pixels = np.load(stream, allow_pickle=False)["rgba"]
    except OSError as error:
        raise StorageError(
            f"no sprites in {folder}: {describe_os_error(error)}; {advice}"
        ) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(f"the sprites in {folder} are damaged ({error}); {advice}") from error
    if len(entries) != len(pixels):
        raise StorageError(
            f"{folder / LIST_FILE} has {len(entries)} entries but {PIXELS_FILE} has "
            f"{len(pixels)} pictures; {advice}"
        )
    return [
        Sprite(Drawing(**{k: v for k, v in entry.items() if k != "split"}), entry["split"], rgba)
        for entry, rgba in zip(entries, pixels, strict=True)
    ]
