"""Who may be drawn: models and drawings of one split, and the looks that models are given.

What a process needs to draw them (meshes, textures, panoramas) is read when it is first asked for
and kept, so the list of identities itself is small and travels between processes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bootpig_rt.errors import InputError
from bootpig_rt.training.render.patterns import COLOURS, MATERIALS, PATTERNS, Pattern
from bootpig_rt.training.splits import Split, load_splits
from bootpig_rt.training.sprites import load_sprites
from bootpig_rt.training.world3d.catalogue import load_catalogue

MODELS_FOLDER = "models"
MAX_COUNTED = 9
"""Beyond so many models, a class is met no more often."""


@dataclass(frozen=True)
class Identity:
    """One model or drawing.

    Attributes:
        key: Tells it from all others.
        noun: Its class, in prompts.
        concept: Of a drawing, the concept; of a model, its noun.
        path: Of a model, its file; None for a drawing.
        row: Of a drawing, its row in the folder's sprites.
    """

    key: str
    noun: str
    concept: str
    path: str | None = None
    row: int = -1

    @property
    def is_drawing(self) -> bool:
        """Whether it is a drawing, which is flat."""
        return self.path is None


@dataclass(frozen=True)
class NamedLook:
    """What an untextured model is given: a pattern in two colours, or a material."""

    pattern: Pattern | None = None
    first: str = ""
    second: str = ""
    material: str = ""

    @property
    def name(self) -> str:
        """As people say it: "striped red and white", "wooden"."""
        if self.material:
            return self.material
        if self.pattern == "plain":
            return self.first
        return f"{self.pattern} {self.first} and {self.second}"

    @property
    def is_held_out(self) -> bool:
        """Whether no sample for training shows it: one in twelve, by its name."""
        digest = hashlib.sha256(f"look {self.name}".encode()).digest()
        return digest[0] % 12 == 0


def draw_look(rng: np.random.Generator) -> NamedLook:
    """Draw a look: a plain colour, a pattern or a material."""
    draw = rng.random()
    names = list(COLOURS)
    first, second = (names[k] for k in rng.choice(len(names), 2, replace=False))
    if draw < 0.3:
        return NamedLook("plain", first)
    if draw < 0.82:
        patterns = PATTERNS[1:]
        return NamedLook(patterns[int(rng.integers(len(patterns)))], first, second)
    return NamedLook(material=list(MATERIALS)[int(rng.integers(len(MATERIALS)))])


@dataclass(frozen=True)
class Identities:
    """The identities of one split.

    Attributes:
        folder: That `fetch-data` made; models are in its folder `models`.
        split: Of all of them.
        models, drawings: In a fixed order.
    """

    folder: Path
    split: Split
    models: tuple[Identity, ...]
    drawings: tuple[Identity, ...]

    def __post_init__(self) -> None:
        """Refuse a list of nobody.

        Raises:
            InputError: There is no identity.
        """
        if not self.models and not self.drawings:
            raise InputError(
                f"{self.folder} has no identities of split {self.split!r}; fetch some with "
                "`bootpig-rt fetch-data --set models-3d`"
            )

    @cached_property
    def classes(self) -> tuple[list[list[int]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """Models of each class, and how often a class is met: by the root of their number."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, model in enumerate(self.models):
            rows[model.noun].append(row)
        weights = np.array([min(len(found), MAX_COUNTED) ** 0.5 for found in rows.values()])
        return list(rows.values()), weights / weights.sum()

    def draw(self, rng: np.random.Generator, drawing_share: float) -> Identity:
        """Draw an identity; a share of them are drawings, where there are both kinds."""
        share = drawing_share if self.models and self.drawings else float(not self.models)
        if rng.random() < share:
            return self.drawings[int(rng.integers(len(self.drawings)))]
        rows, weights = self.classes
        found = rows[int(rng.choice(len(rows), p=weights))]
        return self.models[found[int(rng.integers(len(found)))]]


def load_identities(folder: Path, split: Split, *, with_drawings: bool) -> Identities:
    """List the identities of a split that a data folder has.

    Args:
        folder: That `fetch-data` made, for models and for drawings.
        split: Which of them.
        with_drawings: Whether drawings are wanted too.

    Raises:
        InputError: A model is missing.
        StorageError: The drawings are missing or damaged.
    """
    models = []
    for model in load_catalogue():
        if model.split != split:
            continue
        path = folder / MODELS_FOLDER / model.source / model.path
        if not path.is_file():
            raise InputError(
                f"{path} is missing; fetch the models with `bootpig-rt fetch-data --set models-3d "
                f"-o {folder / MODELS_FOLDER}`"
            )
        models.append(Identity(model.key, model.noun, model.noun, str(path)))
    drawings = []
    if with_drawings:
        for row, sprite in enumerate(load_sprites(folder)):
            # A class that is held out in one kind is held out in both.
            if sprite.split == split and (
                split != "train" or not is_held_out_noun(sprite.drawing.noun)
            ):
                key = f"{sprite.drawing.style}/{sprite.drawing.concept}"
                drawings.append(Identity(key, sprite.drawing.noun, sprite.drawing.concept, row=row))
    return Identities(folder, split, tuple(models), tuple(drawings))


def is_held_out_noun(noun: str) -> bool:
    """Whether a class is held out as a whole, by its noun."""
    return noun in _held_out_nouns()


def _held_out_nouns() -> frozenset[str]:
    own = {model.noun for model in load_catalogue() if model.split == "held_out_concept"}
    return frozenset(own | {concept.replace("-", " ") for concept in load_splits().concepts})
