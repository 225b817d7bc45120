"""Drawings as pixels, kept on disk: renders all, drops what cannot be used, counts why.

Drawings that are empty, thin or tiny, or fill a square like a framed picture are rejected, and so
is a drawing that repeats another style's drawing of the same concept: then two identities would be
one.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.raster import (
    SPRITE_PX,
    Pixels,
    draw_sprite,
    drawing_distance,
    fault_of,
)
from bootpig_rt.training.workers import spread

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
        rgba: uint8 [P, P, 4], straight alpha, colour 0 where alpha is 0.
    """

    drawing: Drawing
    split: str
    rgba: Pixels


def render_all(
    svgs: Sequence[str],
    *,
    sprite_px: int = SPRITE_PX,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Pixels:
    """Render N SVG documents, uint8 [N, sprite_px, sprite_px, 4]; one that is none is left empty.

    `on_progress` is called with the number of drawings just finished.
    """
    found = []
    chunks = [svgs[start : start + CHUNK] for start in range(0, len(svgs), CHUNK)]
    for pixels in spread(partial(_render_chunk, sprite_px=sprite_px), chunks, workers):
        found.append(pixels)
        if on_progress is not None:
            on_progress(len(pixels))
    return np.concatenate(found)


def _render_chunk(svgs: Sequence[str], sprite_px: int) -> Pixels:
    sprites = np.zeros((len(svgs), sprite_px, sprite_px, 4), dtype=np.uint8)
    for row, svg in enumerate(svgs):
        with contextlib.suppress(ValueError):  # resvg's word for a broken document
            sprites[row] = draw_sprite(svg, sprite_px)
    return sprites


def choose_rows(
    drawings: Sequence[Drawing], sprites: Pixels, *, min_styles: int = 4
) -> tuple[list[int], Counter[str]]:
    """Decide which drawings to keep; within a concept, an earlier style wins over its repetition.

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
    svgs: Sequence[str],
    folder: Path,
    *,
    split_of: Callable[[str, str], str],
    min_styles: int = 4,
    sprite_px: int = SPRITE_PX,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Render drawings and write `sprites.npz` and `sprites.json` into a folder.

    Args:
        drawings: Identities; within a concept, an earlier style wins over its repetition.
        svgs: Of each, a document.
        folder: Data folder.
        split_of: Split of a (concept, style).
        min_styles: Concepts with fewer usable styles are left out.
        sprite_px: Side of a sprite, a multiple of 24.
        workers: Number of processes.
        on_progress: Called with the number of drawings just finished.

    Returns:
        Rejected drawings by reason.

    Raises:
        StorageError: The folder cannot be written.
    """
    pixels = render_all(svgs, sprite_px=sprite_px, workers=workers, on_progress=on_progress)
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
