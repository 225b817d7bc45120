"""The arithmetic of DreamBench, on features of length 1.

A picture's CLIP-I or DINO is its mean cosine with all photographs of its subject, its CLIP-T the
cosine with its prompt. Means go over a subject's pictures first, then over subjects (Ruiz et al.,
arXiv 2208.12242, section 4.1). The rows beside it say what such numbers are worth: photographs in
place of pictures, of the same subject, of another one, or copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def identity_scores(pictures: Floats, photographs: Floats) -> Doubles:
    """Mean cosine of each picture with all photographs of its subject.

    `pictures` float32 [N, F] and `photographs` [R, F] -> float64 [N].
    """
    cosines: Doubles = pictures.astype(np.float64) @ photographs.astype(np.float64).T
    scores: Doubles = cosines.mean(axis=1)
    return scores


def text_scores(pictures: Floats, prompts: Floats) -> Doubles:
    """Cosine of each picture with its own prompt: float32 [N, F] twice -> float64 [N]."""
    products: Doubles = pictures.astype(np.float64) * prompts.astype(np.float64)
    scores: Doubles = products.sum(axis=1)
    return scores


def mean_over_subjects(values: Sequence[Doubles]) -> float:
    """Mean of the subjects' means; `values` has one array for each subject."""
    return float(np.mean([each.mean() for each in values]))


@dataclass(frozen=True)
class Controls:
    """What photographs score in place of pictures, means over subjects.

    Attributes:
        real: Each photograph with the other ones of its subject: the oracle row.
        copy: Each with all of its subject, itself too: what a pair gets that copies a reference.
        same_class: With photographs of other subjects of the same noun; None where there are none.
        other: With photographs of subjects of other nouns; None where there are none.
    """

    real: float
    copy: float
    same_class: float | None
    other: float | None


def controls(photographs: Sequence[Floats], nouns: Sequence[str]) -> Controls:
    """Scores of photographs.

    Args:
        photographs: For each subject float32 [R, F], R at least 2.
        nouns: Of the subjects.
    """
    real, copy, same, other = [], [], [], []
    for number, (own, noun) in enumerate(zip(photographs, nouns, strict=True)):
        real.append(np.array([oracle_score(own)]))
        copy.append(identity_scores(own, own))
        alike = [p for k, p in enumerate(photographs) if k != number and nouns[k] == noun]
        unlike = [p for k, p in enumerate(photographs) if nouns[k] != noun]
        if alike:
            same.append(identity_scores(own, np.concatenate(alike)))
        if unlike:
            other.append(identity_scores(own, np.concatenate(unlike)))
    return Controls(
        mean_over_subjects(real),
        mean_over_subjects(copy),
        mean_over_subjects(same) if same else None,
        mean_over_subjects(other) if other else None,
    )


def oracle_score(photographs: Floats) -> float:
    """Mean cosine over pairs of different photographs of one subject, [R, F] with R at least 2."""
    wide = photographs.astype(np.float64)
    cosines = wide @ wide.T
    count = len(wide)
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
