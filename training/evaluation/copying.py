"""The copy-paste score: how well the reference, pasted into a picture, would explain it.

The reference's subject is cut out, scaled and shifted over the picture; the score is the largest
normalised cross-correlation inside its outline, all colours together. A picture that shows the
subject in another view scores lower than one that pastes it, so the renderer's own pictures (which
always show another view) tell what is usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.evaluation.statistics import rate, rounded

Doubles = NDArray[np.float64]
LENGTHS = (0.46, 0.52, 0.58, 0.64, 0.70)


def paste_rates(
    drawn: Mapping[str, tuple[Sequence[int], NDArray[np.uint8]]],
    views: Sequence[Sequence[Image.Image]],
    *,
    lengths: Sequence[float] = LENGTHS,
) -> dict[str, Any]:
    """Scores and gaps of pictures, for a report.

    The gap is the score of the view that was given less that of another view of the same subject,
    which was not: 0 where the view has no say, above 0 where the given view is copied.

    Args:
        drawn: By who drew them: numbers of the subjects, and pictures, uint8 [N, S, S, 3].
        views: Of each subject, the one that was given and one that was not, RGBA.
        lengths: See `paste_score`.
    """
    report: dict[str, Any] = {}
    for name, (numbers, pictures) in drawn.items():
        scores = [
            [paste_score(picture, view, lengths=lengths) for view in views[number]]
            for number, picture in zip(numbers, pictures, strict=True)
        ]
        given, gaps = [a for a, _ in scores], [a - b for a, b in scores]
        report[name] = {"score": rounded(rate(given, numbers)), "gap": rounded(rate(gaps, numbers))}
    return report


def paste_score(
    picture: NDArray[np.uint8], reference: Image.Image, *, lengths: Sequence[float] = LENGTHS
) -> float:
    """Largest correlation of a reference with a picture over scales and shifts; 1: an exact paste.

    `picture` is uint8 [S, S, 3], `reference` RGBA, the subject on nothing. `lengths` are the longer
    sides that it is tried at, shares of S.
    """
    size = picture.shape[0]
    box = reference.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    if box is None:
        return 0.0
    subject = reference.crop(box)
    spectrum = np.fft.rfft2(picture.astype(np.float64) / 255.0, axes=(0, 1))
    squares = np.fft.rfft2((picture.astype(np.float64) / 255.0) ** 2, axes=(0, 1))
    best = -1.0
    for length in lengths:
        scale = length * size / max(subject.size)
        width, height = (max(2, round(side * scale)) for side in subject.size)
        small = np.asarray(subject.resize((width, height), Image.Resampling.BOX), np.float64)
        mask = (small[..., 3] > 200).astype(np.float64)
        if mask.sum() < 16:
            continue
        template = small[..., :3] / 255.0
        # One mean for all colours: the hues of the subject count, not only its shading.
        centred = (template - template[mask > 0].mean()) * mask[..., None]
        energy = float((centred**2).sum())
        if energy < 1e-6:
            continue
        product = _correlate(spectrum, centred, size)
        total = _correlate(spectrum, np.repeat(mask[..., None], 3, -1), size)
        power = _correlate(squares, np.repeat(mask[..., None], 3, -1), size)
        spread = np.maximum(power - total**2 / (3 * mask.sum()), 1e-6)
        score = product / np.sqrt(energy * spread)
        best = max(best, float(score[: size - height + 1, : size - width + 1].max()))
    return best


def _correlate(spectrum: NDArray[np.complex128], kernel: Doubles, size: int) -> Doubles:
    """Sum over colours of the cross-correlation at each shift, [S, S]."""
    padded = np.zeros((size, size, 3))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    product = spectrum * np.conj(np.fft.rfft2(padded, axes=(0, 1)))
    result: Doubles = np.fft.irfft2(product.sum(axis=-1), s=(size, size), axes=(0, 1))
    return result
