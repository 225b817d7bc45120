"""The renderer's own pictures: ceiling of every judge, candidates of the identity judges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bootpig_rt.training.captions import Position
from bootpig_rt.training.compose import CENTRE_X, Rng, place, target_view
from bootpig_rt.training.evaluation.suite import EvalSubject, Shot, SuiteConfig, stream
from bootpig_rt.training.scenes import draw_scene

SCENE_DRAWS = 32
CROP_SHARE = 0.72
CROP_Y = 0.57


def render_style(
    rng: Rng, subject: EvalSubject, which: int, scene: str, position: Position, size_px: int
) -> NDArray[np.uint8]:
    """One style of the subject's concept in a new drawing of a scene, uint8 [S, S, 3]."""
    background = draw_scene(scene, rng, size_px)
    return place(subject.sprites[which], target_view(rng, position), background)[0]


@cache
def scene_range(scene: str, seed: int, size_px: int) -> NDArray[np.float64]:
    """What pixels a scene usually has: mean less and plus two standard deviations, [2, S, S, 3]."""
    rng = stream(seed, "mean scene", scene)
    drawn = np.stack([draw_scene(scene, rng, size_px) for _ in range(SCENE_DRAWS)])
    mean, spread = drawn.mean(axis=0), 2 * drawn.std(axis=0)
    return np.stack([mean - spread, mean + spread])


def subject_box(position: Position, size_px: int) -> tuple[int, int, int, int]:
    """Where prompts put the subject: left, top, right, bottom, inside the picture."""
    side = round(CROP_SHARE * size_px)
    left = round(CENTRE_X[position] * size_px - side / 2)
    top = round(CROP_Y * size_px - side / 2)
    left, top = (min(max(0, start), size_px - side) for start in (left, top))
    return left, top, left + side, top + side


def crop(pictures: NDArray[np.uint8], position: Position) -> NDArray[np.uint8]:
    """Cut the subject's box out of pictures, uint8 [..., S, S, 3]."""
    left, top, right, bottom = subject_box(position, pictures.shape[-2])
    return pictures[..., top:bottom, left:right, :]


def blur(picture: NDArray[np.uint8], radius_px: float) -> NDArray[np.uint8]:
    """Gaussian blur, the look of a small decoder."""
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(image, dtype=np.uint8)


class RendererGenerator:
    """Draws shots with the renderer in place of a pair: the ceiling, and a stand-in for tests.

    The whole picture is blurred with a radius of `blur_px`, and gets noise of a standard deviation
    of `noise`, 0 to 255.
    """

    def __init__(
        self,
        subjects: Sequence[EvalSubject],
        config: SuiteConfig,
        *,
        size_px: int = 64,
        blur_px: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.subjects, self.config = subjects, config
        self.size_px, self.blur_px, self.noise = size_px, blur_px, noise

    @property
    def fingerprint(self) -> str:
        """What the pictures depend on, besides the shots."""
        return f"renderer {self.size_px} {self.blur_px:g} {self.noise:g}"

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        """Pictures of the shots, uint8 [N, S, S, 3]."""
        return np.stack([self._draw(shot) for shot in shots])

    def _draw(self, shot: Shot) -> NDArray[np.uint8]:
        subject = self.subjects[shot.subject]
        prompt = subject.prompts[shot.prompt]
        rng = stream(self.config.seed, "renderer", subject.key, shot.tag)
        which = {"own": subject.own, "wrong": subject.wrong}.get(shot.arm)
        if which is None:  # without a reference: any style
            which = int(rng.integers(len(subject.styles)))
        picture = render_style(rng, subject, which, prompt.scene, prompt.position, self.size_px)
        if self.blur_px:
            picture = blur(picture, self.blur_px)
        if self.noise:
            grain = rng.normal(0.0, self.noise, picture.shape)
            picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
        return picture
