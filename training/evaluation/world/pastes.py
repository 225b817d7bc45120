"""How well pasted references would explain pictures of the 3-D world, see `evaluation.copying`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bootpig_rt.training.evaluation.copying import paste_rates
from bootpig_rt.training.evaluation.suite import Shot, stream
from bootpig_rt.training.evaluation.world.judges import Pictures, render_in_scene, views
from bootpig_rt.training.evaluation.world.suite import (
    WorldSubject,
    WorldSuiteConfig,
    reference_views,
)
from bootpig_rt.training.world3d.compose import CENTRES, LENGTHS
from bootpig_rt.training.world3d.studio import Studio

_LENGTHS = tuple(float(share) for share in np.linspace(*LENGTHS["normal"], 5))
"""At which references are sought in pictures, whose prompts ask for subjects of normal size."""


def world_pastes(
    drawn: Mapping[str, tuple[Sequence[Shot], Pictures]],
    subjects: Sequence[WorldSubject],
    config: WorldSuiteConfig,
    studio: Studio,
    closeup: Studio,
) -> dict[str, Any]:
    """Paste scores of who drew, and of real pastes.

    Args:
        drawn: By name, the pictures and what they are of. Those count whose subject, prompt and
            seed all of them drew.
        subjects: Of the suite.
        config: The suite.
        studio: Of the size of the pictures.
        closeup: Of references.
    """
    references = [reference_views(one, 0, 2, closeup) for one in subjects]
    wanted = set.intersection(*(set(map(_place, shots)) for shots, _ in drawn.values()))
    found: dict[str, tuple[Sequence[int], Pictures]] = {}
    for name, (shots, pictures) in drawn.items():
        rows = [n for n, shot in enumerate(shots) if _place(shot) in wanted]
        found[name] = [shots[n].subject for n in rows], pictures[rows]
    pasted = [
        _paste(one, shown[0], config, studio)
        for one, shown in zip(subjects, references, strict=True)
    ]
    found["paste"] = range(len(subjects)), np.stack(pasted)
    return paste_rates(found, references, lengths=_LENGTHS)


def _place(shot: Shot) -> tuple[int, int, int]:
    return shot.subject, shot.prompt, shot.seed


def _paste(
    subject: WorldSubject, reference: Image.Image, config: WorldSuiteConfig, studio: Studio
) -> Pictures:
    """The reference itself, reduced, in front of what the renderer draws in the first scene."""
    caption, size = subject.captions[0], studio.renderer.size_px
    rng = stream(config.seed, "paste", subject.key)
    (view,) = views(subject.candidates[0], 1, rng)
    drawn, _ = render_in_scene(rng, subject.candidates[0], caption, view, studio)
    picture = Image.fromarray(drawn)
    cut = reference.crop(reference.getchannel("A").getbbox())
    scale = _LENGTHS[len(_LENGTHS) // 2] * size / max(cut.size)
    small = cut.resize([max(1, round(side * scale)) for side in cut.size], Image.Resampling.BOX)
    left = round(CENTRES[caption.position] * size - small.width / 2)
    picture.paste(small, (left, size - small.height - size // 8), small)
    return np.asarray(picture, np.uint8)
