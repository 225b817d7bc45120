"""A judge in pixels: the likelihood of a picture under each style, at its best alignment.

For each style the drawing is laid over the scene's mean picture at many scales, turns, shifts and
both ways round. Pixels of the drawing may differ from it by a little, pixels beside it by as much
as the scene varies there, so that outline and colours both count. The best alignment of a style
speaks for it. No network takes part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.captions import Position
from bootpig_rt.training.compose import CENTRE_X, View, place
from bootpig_rt.training.evaluation.identity import Floats, by_prompt
from bootpig_rt.training.evaluation.render import CROP_Y, subject_box
from bootpig_rt.training.evaluation.suite import EvalSubject, Shot, SuiteConfig, stream
from bootpig_rt.training.scenes import draw_scene

SIDE_PX = 32
SCENE_PX = 64
SCENE_DRAWS = 32
LENGTHS = (0.54, 0.61, 0.68)
TURNS_DEG = (-9.0, 0.0, 9.0)
SHIFTS_PX = (-2, -1, 0, 1, 2)
TOLERANCE = 24.0
"""Standard deviation of a pixel of the right drawing, 0 to 255."""


class AlignmentJudge:
    """See above. Pictures are reduced to 32 px first.

    With `is_grey` it looks at brightness alone, so that hues cannot decide.
    """

    def __init__(
        self, subjects: Sequence[EvalSubject], config: SuiteConfig, *, is_grey: bool = False
    ) -> None:
        self.subjects, self.config, self.is_grey = subjects, config, is_grey
        self.name = "grey_pixels" if is_grey else "pixels"
        self.about = (
            "likelihood of the pixels under each style's drawing at its best alignment"
            + ", in grey: outline and brightness without hue" * is_grey
        )
        self._scenes: dict[str, tuple[Floats, Floats]] = {}
        self._layers: dict[int, tuple[Floats, NDArray[np.int64]]] = {}

    def _scene(self, key: str) -> tuple[Floats, Floats]:
        """Mean picture [P, P, C] of a scene, and its variance [P, P]."""
        if key not in self._scenes:
            rng = stream(self.config.seed, "mean scene", key)
            drawn = np.stack([_reduce(draw_scene(key, rng, SCENE_PX)) for _ in range(SCENE_DRAWS)])
            drawn = _grey(drawn) if self.is_grey else drawn
            self._scenes[key] = drawn.mean(axis=0), drawn.var(axis=0).mean(axis=-1)
        return self._scenes[key]

    def _layers_of(self, number: int) -> tuple[Floats, NDArray[np.int64]]:
        """Layers [V, P, P, C + 1], colour times alpha and alpha, and the style of each."""
        if number not in self._layers:
            layers, styles = [], []
            black = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
            for style, sprite in enumerate(self.subjects[number].sprites):
                for length in LENGTHS:
                    for turn in TURNS_DEG:
                        for is_flipped in (False, True):
                            view = View(length, (0.5, CROP_Y), turn, is_flipped)
                            layers.append(np.dstack(place(sprite, view, black)))
                            styles.append(style)
            drawn = np.stack(layers).astype(np.float32)
            if self.is_grey:
                drawn = np.concatenate([_grey(drawn[..., :3]), drawn[..., 3:]], axis=-1)
            self._layers[number] = drawn, np.array(styles)
        return self._layers[number]

    def scores(self, shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> list[Floats]:
        """Larger is nearer; see `IdentityJudge`."""
        found: dict[int, Floats] = {}
        for (subject, prompt), numbers in by_prompt(shots).items():
            asked = self.subjects[subject].prompts[prompt]
            small = np.stack([_reduce(pictures[number]) for number in numbers])
            small = _grey(small) if self.is_grey else small
            rows = self._likelihoods(subject, asked.scene, asked.position, small)
            found.update(zip(numbers, rows, strict=True))
        return [found[number] for number in range(len(shots))]

    def _likelihoods(
        self, subject: int, scene: str, position: Position, pictures: Floats
    ) -> Floats:
        """Pictures [N, P, P, C] -> [N, K]."""
        layers, styles = self._layers_of(subject)
        left, top, right, bottom = subject_box(position, SIDE_PX)
        mean, variance = self._scene(scene)
        area = (slice(top, bottom), slice(left, right))
        channels = mean.shape[-1]
        behind, spread = mean[area], variance[area]
        queries = pictures[:, top:bottom, left:right].reshape(len(pictures), -1)
        aside = round((CENTRE_X[position] - 0.5) * SIDE_PX)
        best = np.full((len(pictures), len(self.subjects[subject].styles)), -np.inf, np.float32)
        for dy in SHIFTS_PX:
            for dx in SHIFTS_PX:
                moved = np.roll(layers, (dy, dx + aside), axis=(1, 2))[:, area[0], area[1]]
                alpha = moved[..., -1] / 255.0
                picture = moved[..., :-1] + (1.0 - alpha[..., None]) * behind
                tolerance = TOLERANCE**2 + (1.0 - alpha) * spread
                logs = np.log(tolerance).sum(axis=(1, 2))
                # |q - c|^2 / v expanded, so that all views meet all pictures in two products.
                weight = np.repeat(1.0 / tolerance[..., None], channels, axis=-1)
                weight = weight.reshape(len(alpha), -1)
                flat = picture.reshape(len(alpha), -1)
                own = (weight * flat * flat).sum(axis=1) + channels * logs
                distance = queries**2 @ weight.T - 2.0 * queries @ (weight * flat).T + own
                for style in range(best.shape[1]):
                    nearest = -0.5 * distance[:, styles == style].min(axis=1)
                    best[:, style] = np.maximum(best[:, style], nearest)
        return best


def _reduce(picture: NDArray[np.uint8]) -> Floats:
    image = Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _grey(pixels: Floats) -> Floats:
    """Brightness, [..., 3] -> [..., 1]."""
    grey: Floats = pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return grey
