"""What the model never sees in training: identities, whole concepts, and combinations with scenes.

The lists are files beside this one, so that a training, an evaluation and a reader of results all
mean the same things. They were chosen once, by chance with seed 0: concepts that share no word with
another and look like no other in the same style, identities that are clearly told from the other
drawings of their concept, combinations spread evenly over the scenes. One entry was changed by hand
when its drawing turned out to belong to another concept: (umbrella, fxemoji) shows a closed
umbrella and is now (closed-umbrella, fxemoji).

- `held_out_concepts.json`: concepts that no style shows in training.
- `held_out_identities.json`: (concept, style) pairs; other styles of the concept are in training.
- `held_out_combinations.json`: (concept, scene) pairs; both are in training, never together.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "held_out_identity", "held_out_concept"]
FOLDER = Path(__file__).parent


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
def load_splits() -> Splits:
    """Read the three lists."""

    def read(name: str) -> list[Any]:
        text = (FOLDER / f"held_out_{name}.json").read_text(encoding="utf-8")
        return list(json.loads(text)[name])

    return Splits(
        concepts=frozenset(str(concept) for concept in read("concepts")),
        identities=frozenset((str(c), str(s)) for c, s in read("identities")),
        combinations=frozenset((str(c), str(s)) for c, s in read("combinations")),
    )


def counts_by_split(entries: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Number of identities in each split."""
    return dict(Counter(entry["split"] for entry in entries))
