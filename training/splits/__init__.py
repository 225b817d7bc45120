"""What the model never sees in training: identities, whole concepts, and combinations with scenes.

The lists are files beside this one, so that a training, an evaluation and a reader of results all
mean the same things. `choose_held_out` and `choose_combinations` made them with seed 0; code that
uses the lists reads the files and never chooses anew, since a choice from other drawings differs.
One entry was changed by hand when its drawing turned out to belong to another concept: (umbrella,
fxemoji) shows a closed umbrella and is now (closed-umbrella, fxemoji).

- `held_out_concepts.json`: concepts that no style shows in training.
- `held_out_identities.json`: (concept, style) pairs; other styles of the concept are in training.
- `held_out_combinations.json`: (concept, scene) pairs; both are in training, never together.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.errors import StorageError
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.raster import Pixels, drawing_distance, reduce_sprite

Split = Literal["train", "held_out_identity", "held_out_concept"]
FOLDER = Path(__file__).parent
MIN_STYLES = 5
"""A held-out subject has this many styles, so that telling it among them means something."""
CLEAR_DISTANCE = 0.13
"""Least distance of a held-out drawing to the other drawings of its concept."""
SIBLING_CORRELATION = 0.9
"""A drawing that correlates more than this with another concept's is not held out."""


@dataclass(frozen=True)
class Splits:
    """The held-out lists.

    Attributes:
        concepts: Held-out concepts.
        identities: Held-out (concept, style) pairs.
        combinations: Held-out (concept, scene) pairs.
    """

    concepts: frozenset[str]
    identities: frozenset[tuple[str, str]]
    combinations: frozenset[tuple[str, str]]

    def split_of(self, concept: str, style: str) -> Split:
        """Tell which split an identity belongs to."""
        if concept in self.concepts:
            return "held_out_concept"
        if (concept, style) in self.identities:
            return "held_out_identity"
        return "train"

    def held_out_scenes(self) -> dict[str, frozenset[str]]:
        """Concept to the scenes that it is never seen in."""
        scenes: dict[str, set[str]] = defaultdict(set)
        for concept, scene in self.combinations:
            scenes[concept].add(scene)
        return {concept: frozenset(names) for concept, names in scenes.items()}


@cache
def load_splits(folder: Path = FOLDER) -> Splits:
    """Read the three lists.

    Raises:
        StorageError: A list is missing or damaged.
    """

    def read(name: str) -> list[Any]:
        path = folder / f"held_out_{name}.json"
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))[name])
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"cannot read the held-out {name} in {path}: {error}; install bootpig-rt again"
            ) from error

    return Splits(
        concepts=frozenset(str(concept) for concept in read("concepts")),
        identities=frozenset((str(c), str(s)) for c, s in read("identities")),
        combinations=frozenset((str(c), str(s)) for c, s in read("combinations")),
    )


def save_list(folder: Path, name: str, seed: int, entries: Iterable[str | Sequence[str]]) -> None:
    """Write one list, an entry to a line, so that a change shows in a diff."""
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    text = f'{{"format": 1, "seed": {seed}, "{name}": [\n{lines}\n]}}\n'
    (folder / f"held_out_{name}.json").write_text(text, encoding="utf-8")


def _rank(seed: int, *names: str) -> str:
    """A fixed random place in a queue that does not depend on what else is in it."""
    return hashlib.sha256(":".join((str(seed), *names)).encode()).hexdigest()


def choose_held_out(
    drawings: Sequence[Drawing],
    sprites: Pixels,
    *,
    seed: int = 0,
    num_concepts: int = 40,
    num_identities: int = 120,
    unfit: Collection[str] = (),
) -> tuple[list[str], list[tuple[str, str]]]:
    """Choose held-out concepts and identities.

    A held-out concept shares no word with another concept and none of its drawings looks like
    another concept's in the same style, so that it is really new. Concepts are spread over the
    categories, identities over the styles.

    Args:
        drawings: N identities.
        sprites: uint8 [N, P, P, 4].
        seed: Same seed and drawings, same choice.
        num_concepts: How many concepts to hold out.
        num_identities: How many identities of other concepts to hold out, one for each concept.
        unfit: Concepts that are never held out.

    Returns:
        Concepts, and (concept, style) pairs, both sorted. Fewer than asked where not enough fit.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, drawing in enumerate(drawings):
        rows_of[drawing.concept].append(row)
    siblings = _rows_with_siblings(drawings, sprites)
    words = Counter(word for concept in rows_of for word in set(concept.split("-")))
    nearest = {c: _nearest_distances(rows, sprites) for c, rows in rows_of.items()}
    candidates = [c for c, rows in rows_of.items() if len(rows) >= MIN_STYLES and c not in unfit]

    by_category: dict[str, list[str]] = defaultdict(list)
    for concept in sorted(candidates, key=lambda c: _rank(seed, c)):
        rows = rows_of[concept]
        is_new = all(words[word] == 1 for word in concept.split("-"))
        is_clear = float(np.median(nearest[concept])) >= CLEAR_DISTANCE
        if is_new and is_clear and not siblings.intersection(rows):
            by_category[drawings[rows[0]].category].append(concept)
    concepts = set(_take_in_turn([by_category[k] for k in sorted(by_category)], num_concepts))

    by_style: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for concept in candidates:
        for row, distance in zip(rows_of[concept], nearest[concept], strict=True):
            if concept not in concepts and row not in siblings and distance >= CLEAR_DISTANCE:
                style = drawings[row].style
                by_style[style].append((concept, style))
    queues = [
        sorted(by_style[style], key=lambda pair: _rank(seed, *pair)) for style in sorted(by_style)
    ]
    identities: dict[str, str] = {}
    while len(identities) < num_identities and any(queues):
        for queue in queues:
            while queue and queue[0][0] in identities:
                queue.pop(0)
            if queue and len(identities) < num_identities:
                concept, style = queue.pop(0)
                identities[concept] = style
    return sorted(concepts), sorted(identities.items())


def choose_combinations(
    concepts: Iterable[str],
    scenes: Iterable[str],
    *,
    seed: int = 0,
    num_pairs: int = 400,
) -> list[tuple[str, str]]:
    """Choose (concept, scene) pairs that are never drawn together in training.

    Every scene is held out about equally often, and a concept keeps at least all scenes but one
    until every concept has lost one.

    Args:
        concepts: Concepts that training shows.
        scenes: Keys of the scenes.
        seed: Same seed, concepts and scenes, same choice.
        num_pairs: How many pairs.

    Returns:
        Pairs, sorted; each only once.
    """
    names = sorted(set(scenes))
    queue = sorted(set(concepts), key=lambda c: _rank(seed, c))
    pairs: list[tuple[str, str]] = []
    for turn in range(len(names)):
        for place, concept in enumerate(queue):
            if len(pairs) < num_pairs:
                pairs.append((concept, names[(place + turn) % len(names)]))
    return sorted(pairs)


def _take_in_turn(queues: Sequence[Sequence[str]], count: int) -> list[str]:
    """Take from queues in proportion to their lengths."""
    total = sum(len(queue) for queue in queues)
    taken: list[str] = []
    seen = 0
    for queue in queues:
        before = round(count * seen / total) if total else 0
        seen += len(queue)
        share = (round(count * seen / total) if total else 0) - before
        taken += list(queue[:share])
    return taken


def _nearest_distances(rows: Sequence[int], sprites: Pixels) -> list[float]:
    """Distance of each drawing of a concept to the nearest other one."""
    nearest = dict.fromkeys(rows, 1.0)
    for first, second in combinations(rows, 2):
        distance = drawing_distance(sprites[first], sprites[second])
        nearest[first] = min(nearest[first], distance)
        nearest[second] = min(nearest[second], distance)
    return [nearest[row] for row in rows]


def _rows_with_siblings(drawings: Sequence[Drawing], sprites: Pixels) -> set[int]:
    """Rows whose drawing looks like another concept's in the same style, mirrored or recoloured."""
    by_style: dict[str, list[int]] = defaultdict(list)
    for row, drawing in enumerate(drawings):
        by_style[drawing.style].append(row)
    found: set[int] = set()
    for rows in by_style.values():
        grey = np.stack([reduce_sprite(sprites[row])[0].mean(axis=-1) for row in rows])
        plain, mirrored = _unit(grey), _unit(grey[:, :, ::-1])
        alike = np.maximum(plain @ plain.T, plain @ mirrored.T) > SIBLING_CORRELATION
        for first, second in np.argwhere(np.triu(alike, k=1)):
            found.update((rows[first], rows[second]))
    return found


def _unit(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = grey.reshape(len(grey), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: NDArray[np.float32] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return unit


def counts_by_split(entries: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Number of identities in each split."""
    return dict(Counter(entry["split"] for entry in entries))
