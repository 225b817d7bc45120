"""Whether pictures paste their references: the copy-paste score, beside that of photographs.

Copying a reference raises CLIP-I and DINO over those of real photographs, so high scores alone say
little. A photograph of the same subject that was not given shows how alike two honest views are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.evaluation.copying import paste_score
from bootpig_rt.training.evaluation.dreambench.features import Way

SIDE_PX = 96
LENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PERCENTILE = 95


@dataclass(frozen=True)
class PasteJudge:
    """Scores pictures of one subject against its references, mode RGBA, one or more."""

    references: tuple[Image.Image, ...]

    @property
    def way(self) -> Way:
        """For a `FeatureStore`."""
        digest = hashlib.sha256(f"paste {SIDE_PX} {LENGTHS}".encode())
        for reference in self.references:
            digest.update(reference.tobytes())
        return Way("copying", digest.hexdigest(), self.scores)

    def scores(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The largest score over the references, float32 [N]."""
        return np.array([self.score(image) for image in images], np.float32)

    def score(self, image: Image.Image, *, leave_out: int | None = None) -> float:
        """Of one picture; `leave_out` is the place of a reference that does not count."""
        side = (SIDE_PX, SIDE_PX)
        pixels = np.asarray(image.convert("RGB").resize(side, Image.Resampling.BOX), np.uint8)
        found = [
            paste_score(pixels, reference, lengths=LENGTHS)
            for place, reference in enumerate(self.references)
            if place != leave_out
        ]
        return max(found)

    def of_photographs(self, photographs: Sequence[Image.Image]) -> list[float]:
        """Scores of the subject's photographs, the references first: none against itself."""
        count = len(self.references)
        return [
            self.score(photograph, leave_out=place)
            for place, photograph in enumerate(photographs)
            if place >= count or count > 1
        ]
