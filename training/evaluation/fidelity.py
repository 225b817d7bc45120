"""How faithful a picture's subject is, as numbers that rank: no candidates, nothing to guess.

The subject's drawing is laid over the picture in many views, at all shifts within a window, and the
view that fits best is kept. There two things are measured:

- `psnr_db`: pixels inside the drawing's outline, in dB; higher is better. It sees colours and
  pattern, not what lies beyond the outline.
- `perceptual`: distance of EfficientNet-Lite0 features to the renderer's picture of that view, in
  and around the outline; lower is better. Around it the picture may show whatever the scene does:
  its own pixels are right, moved into the range that the scene has there. Computed as LPIPS (Zhang
  et al. 2018, arXiv 1801.03924) without learned weights: at each of four resolutions channels are
  scaled to unit length and squared differences are averaged.

The renderer's own pictures of the same shots give the best that can be reached, the arms with a
wrong or no reference what a picture gets that knows the subject's class alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bootpig_rt.training.compose import View, place
from bootpig_rt.training.evaluation.efficientnet import EfficientNetLite0, to_pixels
from bootpig_rt.training.evaluation.identity import by_prompt
from bootpig_rt.training.evaluation.render import CROP_SHARE, CROP_Y, scene_range
from bootpig_rt.training.evaluation.suite import EvalSubject, Shot, SuiteConfig

Doubles = NDArray[np.float64]

LENGTHS = (0.54, 0.57, 0.60, 0.63, 0.66)
TURNS_DEG = (-8.0, -4.0, 0.0, 4.0, 8.0)
LIGHTS = (0.9, 1.0)
"""Range of brightness that training pictures have; the best in it is taken."""
SHIFT_X, SHIFT_Y = 0.22, 0.06
"""Largest shift from the middle of the picture, and from the height of subjects, shares of S."""
SIDE_PX = 96
"""Crops are enlarged to this side for the network."""
RING = 0.05
"""Width of the ring around the outline that the perceptual distance sees too, share of S."""


@dataclass(frozen=True)
class ShiftedViews:
    """A drawing in V views, and what the correlation with a picture needs of them.

    `colours` float64 [V, S, S, 3], times alpha; `alpha` float64 [V, S, S], 0..1; `spectra` of
    alpha times colour [V, S, S', 3] and `masks` of alpha [V, S, S']; `area` and `energy` [V], sums
    of alpha and of alpha times colour squared.
    """

    colours: Doubles
    alpha: Doubles
    spectra: NDArray[np.complex128]
    masks: NDArray[np.complex128]
    area: Doubles
    energy: Doubles


class FidelityJudge:
    """Measures pictures against the renderer's drawing of their own subject.

    `network`, in evaluation mode, gives the features.
    """

    def __init__(
        self, subjects: Sequence[EvalSubject], config: SuiteConfig, network: EfficientNetLite0
    ) -> None:
        self.subjects, self.config, self.network = subjects, config, network

    def __call__(
        self, shots: Sequence[Shot], pictures: NDArray[np.uint8]
    ) -> dict[str, list[float]]:
        """Measure pictures, uint8 [N, S, S, 3]: `psnr_db` and `perceptual`, N each."""
        size = pictures.shape[1]
        psnr, targets = np.zeros(len(shots)), np.zeros_like(pictures)
        rings = np.zeros(pictures.shape[:3], np.uint8)
        whose: dict[int, ShiftedViews] = {}
        for (number, prompt), rows in sorted(by_prompt(shots).items()):
            if number not in whose:  # shots of one subject lie together after sorting
                whose = {number: _views(self.subjects[number], size)}
            scene = scene_range(self.subjects[number].prompts[prompt].scene, self.config.seed, size)
            for row in rows:
                error, target, alpha = best_view(whose[number], pictures[row], scene)
                psnr[row] = 10 * np.log10(255.0**2 / max(error, 1e-2))
                targets[row], rings[row] = target, with_ring(alpha, RING)
        distances = perceptual_distances(self.network, pictures, targets, rings)
        return {"psnr_db": psnr.tolist(), "perceptual": distances.tolist()}


def _views(subject: EvalSubject, size: int) -> ShiftedViews:
    black = np.zeros((size, size, 3), np.uint8)
    drawn = [
        place(subject.sprites[subject.own], View(length, (0.5, CROP_Y), turn, flip), black)
        for length in LENGTHS
        for turn in TURNS_DEG
        for flip in (False, True)
    ]
    # `place` lays over black: colours are times alpha already.
    colours = np.stack([colour for colour, _ in drawn]).astype(np.float64)
    alpha = np.stack([mask for _, mask in drawn]).astype(np.float64) / 255.0
    return views_of(colours, alpha)


def views_of(colours: Doubles, alpha: Doubles) -> ShiftedViews:
    """Views of a subject, ready to be laid over pictures.

    Args:
        colours: [V, S, S, 3], 0 to 255, times alpha.
        alpha: [V, S, S], 0 to 1.
    """
    straight = colours / np.maximum(alpha, 1 / 255)[..., None]
    return ShiftedViews(
        colours,
        alpha,
        np.fft.rfft2(colours, axes=(1, 2)),
        np.fft.rfft2(alpha, axes=(1, 2)),
        alpha.sum(axis=(1, 2)),
        (colours * straight).sum(axis=(1, 2, 3)),
    )


def best_view(
    views: ShiftedViews,
    picture: NDArray[np.uint8],
    scene: Doubles,
    *,
    shifts: tuple[float, float] = (SHIFT_Y, SHIFT_X),
) -> tuple[float, NDArray[np.uint8], Doubles]:
    """The least mean squared error over views and shifts, the renderer's picture and its alpha.

    `scene` is what `scene_range` gives, `shifts` the largest ones down and aside, shares of S.
    """
    size = picture.shape[0]
    pixels = picture.astype(np.float64)
    spectrum = np.fft.rfft2(pixels, axes=(0, 1))
    power = np.fft.rfft2((pixels**2).sum(axis=-1))
    product = np.fft.irfft2((spectrum * views.spectra.conj()).sum(axis=-1), s=(size, size))
    squares = np.fft.irfft2(power * views.masks.conj(), s=(size, size))
    rows, columns = (np.arange(-round(s * size), round(s * size) + 1) for s in shifts)
    window = np.ix_(np.arange(len(product)), rows, columns)
    product, squares = product[window], squares[window]
    energy = views.energy[:, None, None]
    light = np.clip(product / np.maximum(energy, 1e-6), *LIGHTS)
    error = squares - 2 * light * product + light**2 * energy
    error /= 3 * np.maximum(views.area, 1e-6)[:, None, None]
    best = np.unravel_index(int(error.argmin()), error.shape)
    shift = (int(rows[best[1]]), int(columns[best[2]]))
    alpha = np.roll(views.alpha[best[0]], shift, axis=(0, 1))
    colours = np.roll(views.colours[best[0]], shift, axis=(0, 1)) * light[best]
    background = np.clip(pixels, *scene)
    target = colours + (1 - alpha[..., None]) * background
    return float(error[best]), np.clip(target + 0.5, 0, 255).astype(np.uint8), alpha


def with_ring(alpha: Doubles, share: float) -> NDArray[np.uint8]:
    """The outline and a ring around it as wide as a share of the side, 0 or 255."""
    width = 2 * max(1, round(share * len(alpha))) + 1
    mask = Image.fromarray(np.where(alpha > 0.5, 255, 0).astype(np.uint8))
    return np.asarray(mask.filter(ImageFilter.MaxFilter(width)), dtype=np.uint8)


@torch.inference_mode()
def perceptual_distances(
    network: EfficientNetLite0,
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    *,
    batch: int = 32,
) -> Doubles:
    """Distance of pictures in the network's features, mean over its stages, float64 [N].

    Pictures are uint8 [N, S, S, 3]; `masks` uint8 [N, S, S] say how much each place counts. Equal
    pictures have 0; the most is 4.
    """
    found = [np.zeros(0)]
    for start in range(0, len(first), batch):
        part = slice(start, start + batch)
        # The subject fills most of the crop; the whole picture is enlarged alike for all.
        side = round(SIDE_PX / CROP_SHARE)
        stages = zip(
            network.stages(to_pixels(first[part], side)),
            network.stages(to_pixels(second[part], side)),
            strict=True,
        )
        weights = torch.from_numpy(masks[part]).float()[:, None]
        distances = []
        for a, b in stages:
            difference = (F.normalize(a) - F.normalize(b)).pow(2).sum(1)
            height, width = difference.shape[-2:]
            weight = F.adaptive_avg_pool2d(weights, (height, width))[:, 0]
            total = (difference * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)
            distances.append(total)
        found.append(torch.stack(distances).mean(0).double().numpy())
    return np.concatenate(found)
