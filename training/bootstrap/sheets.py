"""Contact sheets: some accepted samples, and some rejects of each stage and reason.

People see in a minute what counts do not say: that a filter throws good pictures away, or that a
segmenter takes the table for the cup.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import grid
from bootpig_rt.training.bootstrap.parts import read_items, read_rejects
from bootpig_rt.training.bootstrap.stage import Item, Reject

TILE_PX = 160
MOST = 24
"""Samples on a sheet."""

_LINES, _LINE_PX = 3, 14


class HasParts(Protocol):
    """A stage whose parts are on disk."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def folder(self) -> Path:
        """Of its parts."""
        ...


def write_sheets(
    output: Path, stages: Sequence[HasParts], numbers: Mapping[int, int], chain: Sequence[Path]
) -> list[Path]:
    """Write `sheets/accepted.png` and `sheets/STAGE-REASON.png`, and return their paths.

    Args:
        output: The run's folder.
        stages: Those that rejected.
        numbers: Of the parts, as keys.
        chain: Folders from which accepted items are read; empty for none.
    """
    folder = output / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    written = []
    accepted = _accepted(chain, numbers) if chain else []
    if accepted:
        tiles = [_tile(_strip(item), [item.caption, _numbers(item)]) for item in accepted]
        written.append(_save(tiles, folder / "accepted.png", columns=2))
    for stage in stages:
        for reason, rejects in _rejects(stage, numbers).items():
            tiles = [
                _tile(Image.fromarray(each.picture), [each.detail, each.caption])
                for each in rejects
                if each.picture is not None
            ]
            if tiles:
                written.append(_save(tiles, folder / f"{stage.name}-{reason}.png", columns=6))
    return written


def _accepted(chain: Sequence[Path], numbers: Mapping[int, int]) -> list[Item]:
    found: list[Item] = []
    for number in numbers:
        for item in read_items(chain, number):
            found.append(item)
            if len(found) == MOST:
                return found
    return found


def _rejects(stage: HasParts, numbers: Mapping[int, int]) -> dict[str, list[Reject]]:
    found: dict[str, list[Reject]] = defaultdict(list)
    for number in numbers:
        for reject in read_rejects(stage.folder, number):
            if len(found[reject.reason]) < MOST:
                found[reject.reason].append(reject)
    return dict(sorted(found.items()))


def _strip(item: Item) -> Image.Image:
    """Target, target with what is cut off darkened, references."""
    view = item.views[0]
    shown = [view.picture]
    if view.mask is not None:
        shown.append(np.where(view.mask[..., None] > 127, view.picture, view.picture // 3))
    shown.extend(item.references)
    tiles = [
        Image.fromarray(each).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS) for each in shown
    ]
    return grid(tiles, len(tiles))


def _numbers(item: Item) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in item.scores)


def _tile(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """A picture with a few lines under it."""
    scale = TILE_PX / picture.height
    width = max(TILE_PX, round(picture.width * scale))
    tile = Image.new("RGB", (width, TILE_PX + _LINES * _LINE_PX + 4), "white")
    tile.paste(picture.convert("RGB").resize((round(picture.width * scale), TILE_PX)))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    letters = max(8, width // 6)
    pieces = [line[k : k + letters] for line in lines for k in range(0, len(line), letters)]
    for k, piece in enumerate(pieces[:_LINES]):
        draw.text((1, TILE_PX + 2 + k * _LINE_PX), piece, font=font, fill=(60, 60, 60))
    return tile


def _save(tiles: list[Image.Image], path: Path, columns: int) -> Path:
    width = max(tile.width for tile in tiles)
    even = []
    for tile in tiles:
        wide = Image.new("RGB", (width, tile.height), "white")
        wide.paste(tile)
        even.append(wide)
    save_png(grid(even, min(columns, len(even)), gap_px=8), path)
    return path
