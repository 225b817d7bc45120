"""Judges of identity: which style of its concept a picture's subject is nearest to.

Every judge knows what the styles of a concept look like in the scene and at the place that the
prompt names, and cuts the same box out of the picture and out of those candidates; what they share
(the scene, the class) cancels out. None has seen the pair or the reference pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.evaluation.efficientnet import EfficientNetLite0, embed
from bootpig_rt.training.evaluation.kept import read_arrays, write_arrays
from bootpig_rt.training.evaluation.render import blur, crop, render_style
from bootpig_rt.training.evaluation.suite import EvalSubject, Shot, SuiteConfig, stream

Floats = NDArray[np.float32]
Embedder = Callable[[NDArray[np.uint8]], Floats]
"""Crops, uint8 [N, h, w, 3] -> features, float32 [N, F]."""

DRAWS = 4
SIDES_PX = (64, 96)
BLUR_PX = 1.0


class IdentityJudge(Protocol):
    """Says how near a picture's subject is to each style."""

    @property
    def name(self) -> str:
        """Key in reports."""

    @property
    def about(self) -> str:
        """One line for reports."""

    def scores(self, shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> list[Floats]:
        """Larger is nearer; float32 [K] for each picture, K the styles of its concept."""


class Candidates:
    """Every style in the scene and at the place of each prompt, drawn once for all judges.

    Scenes are drawn anew and views jittered as in training pictures; no draw is that of a shot.
    """

    def __init__(
        self, subjects: Sequence[EvalSubject], config: SuiteConfig, *, size_px: int = 64
    ) -> None:
        self.subjects, self.config, self.size_px = subjects, config, size_px
        self._crops: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def crops(self, subject: int, prompt: int) -> NDArray[np.uint8]:
        """The subject's box of each candidate, uint8 [K, DRAWS, h, w, 3]."""
        if (subject, prompt) not in self._crops:
            whose = self.subjects[subject]
            asked = whose.prompts[prompt]
            rng = stream(self.config.seed, "candidates", whose.key, asked)
            drawn = [
                [
                    render_style(rng, whose, which, asked.scene, asked.position, self.size_px)
                    for _ in range(DRAWS)
                ]
                for which in range(len(whose.styles))
            ]
            self._crops[subject, prompt] = crop(np.array(drawn), asked.position).copy()
        return self._crops[subject, prompt]


def network_features(net: EfficientNetLite0) -> Embedder:
    """Features of blurred crops at two sizes, side by side.

    The blur makes sharp candidates and soft pictures alike; two sizes are steadier than one.
    """

    def features(crops: NDArray[np.uint8]) -> Floats:
        soft = np.stack([blur(picture, BLUR_PX) for picture in crops])
        return np.concatenate([embed(net, soft, side_px=side) for side in SIDES_PX], axis=1)

    return features


def colour_histogram(crops: NDArray[np.uint8]) -> Floats:
    """Square roots of the shares of 216 colours, the middle of the crop counting most."""
    side = crops.shape[1]
    axis = np.abs(np.linspace(-1, 1, side))
    weight = np.clip(1.2 - np.hypot(axis[:, None], axis[None, :]), 0.0, 1.0).ravel()
    bins = np.minimum(crops // 43, 5).astype(np.int64) @ np.array([36, 6, 1])
    found = [np.bincount(row.ravel(), weight, 216) / weight.sum() for row in bins]
    roots: Floats = np.sqrt(np.stack(found)).astype(np.float32)
    return roots


class FeatureJudge:
    """Cosine to the candidates' mean features, centred and scaled by their spread within a style.

    The features are `parts` of equal length, each with a cosine of its own. Those of the candidates
    are kept in `cache`, a file named by all that they depend on; None keeps nothing.
    """

    def __init__(
        self,
        name: str,
        about: str,
        embedder: Embedder,
        *,
        parts: int,
        candidates: Candidates,
        cache: Path | None = None,
    ) -> None:
        self.name, self.about, self.embedder, self.parts = name, about, embedder, parts
        self.subjects = candidates.subjects
        bank = None if cache is None else read_arrays(cache)
        if bank is None:
            # Half precision: a thousandth of a feature changes no verdict, and the file halves.
            bank = {
                f"{s}.{p}": self._features(candidates.crops(s, p)).astype(np.float16)
                for s, subject in enumerate(self.subjects)
                for p in range(len(subject.prompts))
            }
            if cache is not None:
                write_arrays(cache, bank)
        self._bank = bank

    def _features(self, crops: NDArray[np.uint8]) -> Floats:
        """Crops [K, D, h, w, 3] -> features [K, D, F]."""
        return self.embedder(crops.reshape(-1, *crops.shape[2:])).reshape(*crops.shape[:2], -1)

    def scores(self, shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> list[Floats]:
        """Larger is nearer; see `IdentityJudge`."""
        positions = [self.subjects[s.subject].prompts[s.prompt].position for s in shots]
        crops = [crop(picture, at) for picture, at in zip(pictures, positions, strict=True)]
        features = self.embedder(np.stack(crops))
        found = []
        for shot, query in zip(shots, features, strict=True):
            bank = self._bank[f"{shot.subject}.{shot.prompt}"].astype(np.float32)
            parts = zip(
                np.split(bank, self.parts, axis=-1), np.split(query, self.parts), strict=True
            )
            found.append(np.sum([_similarity(own, seen) for own, seen in parts], axis=0))
        return found


def _similarity(bank: Floats, query: Floats) -> Floats:
    """Cosine of a query [F] to each style of a bank [K, D, F] -> [K]."""
    means = bank.mean(axis=1)
    centre = means.mean(axis=0)
    variance = (bank - means[:, None]).var(axis=(0, 1))
    # A share of the mean variance keeps features that hardly vary from taking over.
    scale = 1.0 / np.sqrt(variance + 0.5 * variance.mean() + 1e-8)
    return unit((means - centre) * scale) @ unit((query - centre) * scale)


def unit(x: Floats) -> Floats:
    """Vectors of length 1 along the last axis."""
    scaled: Floats = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
    return scaled


def by_prompt(shots: Sequence[Shot]) -> dict[tuple[int, int], list[int]]:
    """Numbers of the shots of each (subject, prompt)."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, shot in enumerate(shots):
        groups[shot.subject, shot.prompt].append(number)
    return groups
