"""Which drawings show the same thing: joins openly licensed emoji sets by concept.

A concept is a thing with a name ("hot dog"). A style is one set of drawings. The same concept in
several styles is the same word with another identity, which is what a personalising model has to
tell apart. This file reads icon sets and joins their names; it knows nothing about
fetching them (`training/art_packages.py`) or about pixels (`training/sprites.py`).

What to keep, which names differ between sets and what to call a thing stands in
`training/art_concepts.json`; the packages and their licences stand in `training/art_sources.json`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bootpig_rt.errors import StorageError

SOURCES_FILE = Path(__file__).with_name("art_sources.json")
RULES_FILE = Path(__file__).with_name("art_concepts.json")
FILES = ("icons.json", "metadata.json", "chars.json")
NAMING_STYLE = "noto"
"""The style whose names and categories are the concepts' names and categories."""


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
class IconSet:
    """One style's drawings, as its package describes them.

    Attributes:
        style: Name of the style.
        icons: Icon name to SVG body.
        boxes: Icon name to (left, top, width, height) of its view box, SVG units.
        aliases: Other name to icon name. Mirrored or turned aliases are left out.
        icon_of_char: Unicode code points (lower-case hex joined by "-", without fe0f) to icon
            name; empty where the package has no such table.
        categories: Category to icon names.
    """

    style: str
    icons: Mapping[str, str]
    boxes: Mapping[str, tuple[float, float, float, float]]
    aliases: Mapping[str, str]
    icon_of_char: Mapping[str, str]
    categories: Mapping[str, Sequence[str]]

    def find(self, name: str) -> str | None:
        """Return the icon that a name means in this set, following an alias; None if unknown."""
        if name in self.icons:
            return name
        return self.aliases.get(name)

    def svg(self, icon: str) -> str:
        """Return one icon as a whole SVG document."""
        left, top, width, height = self.boxes[icon]
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width:g}" height="{height:g}" '
            f'viewBox="{left:g} {top:g} {width:g} {height:g}">{self.icons[icon]}</svg>'
        )


@dataclass(frozen=True)
class ConceptRules:
    """What to keep and how to name it.

    Attributes:
        categories: Categories of the naming style that are kept.
        exclude: Concepts that are left out: signs, scenes, people, doubles of another concept.
        icons: Style to (concept to icon name), where a set calls a concept something else.
            An empty icon name means: this style does not draw this concept.
        nouns: Concept to the words of the prompt, where its name with spaces does not read well.
        never_held_out: Concepts that are used in training only: thin, flat or much alike in all
            styles, so that a test with them would say little.
    """

    categories: tuple[str, ...]
    exclude: frozenset[str]
    icons: Mapping[str, Mapping[str, str]]
    nouns: Mapping[str, str]
    never_held_out: frozenset[str] = frozenset()

    def noun(self, concept: str) -> str:
        """Return the words for a concept in a prompt."""
        return self.nouns.get(concept, concept.replace("-", " "))


@dataclass(frozen=True)
class Drawing:
    """One identity: a concept as one style draws it."""

    concept: str
    style: str
    icon: str
    noun: str
    category: str


def load_sources(path: Path = SOURCES_FILE) -> tuple[ArtSource, ...]:
    """Read the list of pinned packages."""
    return tuple(ArtSource(**entry) for entry in json.loads(path.read_text())["sources"])


def load_rules(path: Path = RULES_FILE) -> ConceptRules:
    """Read the rules of the join."""
    return msgspec.json.decode(path.read_bytes(), type=ConceptRules)


def read_icon_set(archive: Path, style: str) -> IconSet:
    """Read a package out of its archive: `icons.json`, `metadata.json`, and `chars.json` if any.

    Raises:
        StorageError: The archive is damaged or lacks a file.
    """
    files: dict[str, Any] = {"chars.json": {}}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                stream = tar.extractfile(member) if name in FILES else None
                if stream is not None:
                    files[name] = json.load(stream)
        data, metadata, chars = (files[name] for name in FILES)
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
        raise StorageError(
            f"{archive} is damaged or lacks a file ({error}); delete it and run "
            "`bootpig-rt fetch-data` again"
        ) from error

    def box(icon: Mapping[str, Any]) -> tuple[float, float, float, float]:
        def side(key: str, default: float) -> float:
            return float(icon.get(key, data.get(key, default)))

        return side("left", 0), side("top", 0), side("width", 16), side("height", 16)

    return IconSet(
        style=style,
        icons={name: icon["body"] for name, icon in data["icons"].items()},
        boxes={name: box(icon) for name, icon in data["icons"].items()},
        aliases={
            name: alias["parent"]
            for name, alias in data.get("aliases", {}).items()
            if alias["parent"] in data["icons"] and set(alias) == {"parent"}
        },
        icon_of_char={_plain_char(char): icon for char, icon in chars.items()},
        categories=metadata.get("categories", {}),
    )


def _plain_char(char: str) -> str:
    """Drop the code point that only asks for a coloured picture."""
    return "-".join(part for part in char.split("-") if part != "fe0f")


def _names_of(concept: str, char: str | None, sets: Sequence[IconSet]) -> list[str]:
    """All names of a concept in any set, best first: own name, by code point, then aliases."""
    names = [concept]
    if char is not None:
        names += [s.icon_of_char[char] for s in sets if char in s.icon_of_char]
    names = list(dict.fromkeys(names))
    parents = set(names)
    for icon_set in sets:
        names += [a for a, parent in icon_set.aliases.items() if parent in parents]
    return list(dict.fromkeys(names))


def join_concepts(
    sets: Sequence[IconSet], rules: ConceptRules, *, min_styles: int = 4
) -> list[Drawing]:
    """Find every kept concept in every style.

    A concept is looked up in a set by the rules' own table, by code point, by each of its known
    names (as written, then without dashes), and last as "<name>-face". One icon of a set is never
    given to two concepts: a better match takes it.

    Args:
        sets: The icon sets; one of them is the naming style.
        rules: What to keep and how to name it.
        min_styles: Concepts drawn in fewer styles are left out.

    Returns:
        Drawings ordered by category, concept, and the order of `sets`.

    Raises:
        StorageError: The naming style is not among the sets.
    """
    naming = next((s for s in sets if s.style == NAMING_STYLE), None)
    if naming is None:
        raise StorageError(
            f"the icon sets lack the style {NAMING_STYLE!r}, which names the concepts; "
            "run `bootpig-rt fetch-data` again"
        )
    char_of_icon: dict[str, str] = {}
    for char, icon in naming.icon_of_char.items():
        char_of_icon.setdefault(icon, char)
    category_of = {
        concept: category
        for category in rules.categories
        for concept in naming.categories.get(category, ())
        if concept not in rules.exclude
    }
    found: dict[tuple[str, str], str] = {}
    for icon_set in sets:
        found.update(_match_style(icon_set, list(category_of), char_of_icon, sets, rules))
    drawings: list[Drawing] = []
    for concept, category in sorted(category_of.items(), key=lambda item: (item[1], item[0])):
        styles = [s.style for s in sets if (concept, s.style) in found]
        if len(styles) >= min_styles:
            noun = rules.noun(concept)
            drawings += [Drawing(concept, s, found[concept, s], noun, category) for s in styles]
    return drawings


def _match_style(
    icon_set: IconSet,
    concepts: Sequence[str],
    char_of_icon: Mapping[str, str],
    sets: Sequence[IconSet],
    rules: ConceptRules,
) -> dict[tuple[str, str], str]:
    """Match the concepts to one set's icons, most certain matches first over all concepts."""
    own = rules.icons.get(icon_set.style, {})
    ranked: list[tuple[int, int, str, str]] = []  # how uncertain, order of concept, concept, icon
    for order, concept in enumerate(concepts):
        if concept in own:
            if own[concept]:
                ranked.append((0, order, concept, own[concept]))
            continue
        char = char_of_icon.get(concept)
        if char is not None and char in icon_set.icon_of_char:
            ranked.append((1, order, concept, icon_set.icon_of_char[char]))
        names = _names_of(concept, char, sets)
        for rank, name in enumerate([*names, *(f"{name}-face" for name in names)], start=2):
            icon = icon_set.find(name) or icon_set.find(name.replace("-", ""))
            if icon is not None:
                ranked.append((rank, order, concept, icon))
    matched: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for _, _, concept, icon in sorted(ranked):
        key = (concept, icon_set.style)
        if key not in matched and icon not in taken and icon in icon_set.icons:
            matched[key] = icon
            taken.add(icon)
    return matched
