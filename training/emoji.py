"""Which drawings show the same thing, in openly licensed emoji sets.

A concept is a thing with a name ("hot dog"). A style is one set of drawings. The same concept in
several styles is the same word with another identity, which is what a personalising model has to
tell apart. `training/drawings.csv` says what each style calls its icon of a concept, and what
prompts call the concept; `training/art_sources.json` has the packages and their licences. This file
knows nothing about fetching them (`training/art_packages.py`) or about pixels
(`training/sprites.py`).
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig_rt.errors import StorageError

SOURCES_FILE = Path(__file__).with_name("art_sources.json")
DRAWINGS_FILE = Path(__file__).with_name("drawings.csv")


@dataclass(frozen=True)
class ArtSource:
    """One pinned package of drawings, its checksum and its licence."""

    style: str
    package: str
    version: str
    archive: str
    sha256: str
    author: str
    author_url: str
    licence: str
    licence_url: str


@dataclass(frozen=True)
class Drawing:
    """One identity: a concept as one style draws it."""

    concept: str
    style: str
    icon: str
    noun: str
    category: str


def load_sources() -> tuple[ArtSource, ...]:
    """Read the list of pinned packages."""
    return tuple(ArtSource(**entry) for entry in json.loads(SOURCES_FILE.read_text())["sources"])


def load_drawings(styles: Sequence[str]) -> list[Drawing]:
    """Read every concept in these styles, by category and concept; a style may lack one."""
    with DRAWINGS_FILE.open(newline="", encoding="utf-8") as stream:
        return [
            Drawing(row["concept"], style, row[style], row["noun"], row["category"])
            for row in csv.DictReader(stream)
            for style in styles
            if row[style]
        ]


def read_svgs(archive: Path, icons: Sequence[str]) -> list[str]:
    """Read icons out of a package's archive, as whole SVG documents.

    Raises:
        StorageError: The archive is damaged or lacks an icon.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = next(m for m in tar if m.name.rpartition("/")[2] == "icons.json")
            stream = tar.extractfile(member)
            assert stream is not None  # the package is pinned
            data: dict[str, Any] = json.load(stream)
        return [_svg(data["icons"][icon], data) for icon in icons]
    except (OSError, EOFError, StopIteration, ValueError, KeyError, tarfile.TarError) as error:
        raise StorageError(
            f"{archive} is damaged or lacks a drawing ({error!r}); delete it and run "
            "`bootpig-rt fetch-data` again"
        ) from error


def _svg(icon: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    def side(key: str, default: float) -> float:
        return float(icon.get(key, defaults.get(key, default)))

    left, top, width, height = (
        side("left", 0),
        side("top", 0),
        side("width", 16),
        side("height", 16),
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width:g}" height="{height:g}" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}">{icon["body"]}</svg>'
    )
