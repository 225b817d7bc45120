"""The drawings of one split, with the scenes that each concept must not be seen in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bootpig_rt.errors import InputError
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites
from bootpig_rt.training.synthesize import Subjects


def load_subjects(data: Path, split: str) -> Subjects:
    """Load the drawings of one split (`train`, `held_out_identity`, `held_out_concept`).

    Raises:
        InputError: The folder has no sprites.
    """
    sprites = [sprite for sprite in load_sprites(data) if sprite.split == split]
    if not sprites:
        raise InputError(
            f"{data} has no drawings of split {split!r}; make them with `bootpig-rt fetch-data`"
        )
    return Subjects(
        sprites=np.stack([sprite.rgba for sprite in sprites]),
        nouns=[sprite.drawing.noun for sprite in sprites],
        concepts=[sprite.drawing.concept for sprite in sprites],
        styles=[sprite.drawing.style for sprite in sprites],
        held_out_scenes=load_splits().held_out_scenes(),
    )
