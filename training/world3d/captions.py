"""Captions of the 3-D world: what, how large, where, in which scene.

"a photo of an anvil, small on the left of a sandy beach". As for the drawn world, the class says
what the subject is and never how it looks, and all before the comma is the reference prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from bootpig_rt.training.captions import POSITIONS, Position, class_prompt

Size = Literal["small", "normal", "large", "close"]
SIZES: tuple[Size, ...] = get_args(Size)
SIZE_WORDS: dict[Size, str] = {
    "small": "small ",
    "normal": "",
    "large": "large ",
    "close": "up close ",
}


@dataclass(frozen=True)
class WorldCaption:
    """A caption with the choices behind it, so that nothing has to be parsed back."""

    noun: str
    position: Position
    size: Size
    scene: str
    scene_phrase: str

    @property
    def reference_prompt(self) -> str:
        """The caption up to its first comma: all that the Reference U-Net is told."""
        return class_prompt(self.noun)

    @property
    def text(self) -> str:
        """The whole caption."""
        place = f"{SIZE_WORDS[self.size]}{POSITIONS[self.position]}"
        return f"{self.reference_prompt}, {place} {self.scene_phrase}"


def draw_placement(
    rng: np.random.Generator, *, size_weights: tuple[float, ...], side_share: float
) -> tuple[Position, Size]:
    """Draw where a subject stands and how large it is; large ones stand in the middle.

    Args:
        rng: Source of the choice.
        size_weights: How often each of `SIZES` is meant.
        side_share: Share of small and normal subjects on the left, and as many on the right.
    """
    weights = np.asarray(size_weights) / sum(size_weights)
    size = SIZES[int(rng.choice(len(SIZES), p=weights))]
    draw = rng.random()
    if size in ("large", "close") or draw >= 2 * side_share:
        return "centre", size
    return ("left" if draw < side_share else "right"), size
