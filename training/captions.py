"""Captions in BootPIG's form: "a photo of a [class], [position] [scene]".

The class names what the subject is, never how it looks: colours and drawing style can come from the
reference alone (paper, section 4.1 and appendix A describe the form; here a grammar replaces the
language model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bootpig_rt.training.scenes import SCENES

Position = Literal["left", "centre", "right"]

POSITIONS: dict[Position, str] = {
    "left": "on the left of",
    "centre": "in the middle of",
    "right": "on the right of",
}

# Share of captions that put the subject on the left, and as many on the right.
SIDE_SHARE = 0.14


@dataclass(frozen=True)
class Caption:
    """A caption with the choices behind it, so that nothing has to be parsed back."""

    noun: str
    position: Position
    scene: str
    scene_phrase: str

    @property
    def reference_prompt(self) -> str:
        """The caption up to its first comma: all that the Reference U-Net is told."""
        return class_prompt(self.noun)

    @property
    def text(self) -> str:
        """The whole caption."""
        return f"{self.reference_prompt}, {POSITIONS[self.position]} {self.scene_phrase}"


def class_prompt(noun: str) -> str:
    """Return "a photo of a dog" or "a photo of an apple"."""
    article = "an" if noun[:1].lower() in "aeiou" else "a"
    return f"a photo of {article} {noun}"


def draw_caption(rng: np.random.Generator, noun: str) -> Caption:
    """Draw a position, mostly the centre, and a scene for a class."""
    draw = rng.random()
    position: Position = "centre"
    if draw < 2 * SIDE_SHARE:
        position = "left" if draw < SIDE_SHARE else "right"
    scene = SCENES[list(SCENES)[int(rng.integers(len(SCENES)))]]
    phrase = scene.phrases[int(rng.integers(len(scene.phrases)))]
    return Caption(noun, position, scene.key, phrase)
