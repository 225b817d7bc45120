"""One sample of the small world: a subject in a scene, its mask, and other views of it on white.

Everything is drawn from one generator, so a sample is a function of (seed, index). The reference's
view differs from the target's in most samples; the hue of the subject is turned by the same random
angle in both, which makes identities endless (only the reference can tell the colours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.captions import Caption, Position, draw_caption
from bootpig_rt.training.raster import SPRITE_PX
from bootpig_rt.training.scenes import draw_scene

Rng = np.random.Generator
Edge = Literal["left", "right", "top", "bottom"]
RejectReason = Literal["held_out_combination", "touches_border", "area", "low_contrast"]

CENTRE_X: dict[Position, float] = {"left": 0.33, "centre": 0.5, "right": 0.67}
# Longest side of the subject in a sprite, as a share of the sprite's side.
SPRITE_FILL = 88 / 96
# References show the subject about as large as pictures do: then attention has to learn where the
# subject stands, not also how much larger the reference is. See LOG.md.
REFERENCE_LENGTH = 0.6


@dataclass(frozen=True)
class View:
    """How a sprite is placed on a square picture. Lengths are shares of the picture's side."""

    length: float
    centre: tuple[float, float]
    turn_deg: float = 0.0
    is_flipped: bool = False
    squash: float = 1.0
    light: float = 1.0
    crop_edge: Literal["none"] | Edge = "none"
    crop_share: float = 0.0


@dataclass(frozen=True)
class WorldConfig:
    """What a sample may look like. The defaults are those of the shipped pair."""

    size_px: int = 64
    hue_probability: float = 0.8
    near_view_probability: float = 0.45
    reference_counts: tuple[float, ...] = (0.82, 0.08, 0.05, 0.05)


@dataclass(frozen=True)
class Sample:
    """Pictures are uint8; `target` [S, S, 3], `mask` [S, S] (0..255), `references` [R, S, S, 3]."""

    target: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    references: NDArray[np.uint8]
    caption: Caption
    is_same_view: bool
    hue_deg: float


def turn_hue(sprite: NDArray[np.uint8], angle_deg: float) -> NDArray[np.uint8]:
    """Turn the hue of an RGBA sprite, uint8 [H, W, 4], about the grey axis; grey stays."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    third, root = 1.0 / 3.0, math.sqrt(1.0 / 3.0)
    same = cos + third * (1.0 - cos)
    forward = third * (1.0 - cos) - root * sin
    backward = third * (1.0 - cos) + root * sin
    matrix = np.array(
        [[same, forward, backward], [backward, same, forward], [forward, backward, same]],
        dtype=np.float32,
    )
    rgb = np.clip(sprite[..., :3].astype(np.float32) @ matrix.T, 0.0, 255.0)
    return np.concatenate([rgb.astype(np.uint8), sprite[..., 3:]], axis=-1)


def place(
    sprite: NDArray[np.uint8], view: View, background: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lay a sprite over a background uint8 [S, S, 3]: the picture, and the subject's mask [S, S].

    The sprite is uint8 [P, P, 4] RGBA; its subject is centred and fills `SPRITE_FILL` of the side.
    """
    size, side = background.shape[0], sprite.shape[0]
    pixels = sprite.astype(np.float32)
    if view.crop_edge != "none":
        pixels = _cut_edge(pixels, view)
    alpha = pixels[..., 3:] / 255.0
    # Premultiplied, so that resampling mixes no colour of transparent pixels into the edge.
    layers = np.concatenate([pixels[..., :3] * alpha * view.light, pixels[..., 3:]], axis=-1)
    premultiplied = Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8), "RGBa")
    scale = side * SPRITE_FILL / (view.length * 2 * size)  # sprite pixels per canvas pixel
    if side > SPRITE_PX and scale >= 2:
        # Bilinear resampling would pass over pixels.
        step = int(scale)
        premultiplied = premultiplied.reduce(step)
        scale, side = scale / step, premultiplied.width
    cos, sin = math.cos(math.radians(view.turn_deg)), math.sin(math.radians(view.turn_deg))
    mirror = -1.0 if view.is_flipped else 1.0
    a, b = mirror * cos * scale, mirror * sin * scale
    d, e = -sin * scale * view.squash, cos * scale * view.squash
    x, y = view.centre[0] * 2 * size, view.centre[1] * 2 * size
    matrix = (a, b, side / 2 - a * x - b * y, d, e, side / 2 - d * x - e * y)
    canvas = premultiplied.transform(
        (2 * size, 2 * size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    layer = np.asarray(canvas, dtype=np.float32).reshape(size, 2, size, 2, 4).mean(axis=(1, 3))
    mask = layer[..., 3:]
    picture = layer[..., :3] + background * (1.0 - mask / 255.0)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), mask[..., 0].astype(np.uint8)


def _cut_edge(pixels: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    cut = pixels.copy()
    side = pixels.shape[0]
    near = round((1.0 - SPRITE_FILL) / 2 * side + view.crop_share * SPRITE_FILL * side)
    far = side - near
    if view.crop_edge == "left":
        cut[:, :near, 3] = 0
    elif view.crop_edge == "right":
        cut[:, far:, 3] = 0
    elif view.crop_edge == "top":
        cut[:near, :, 3] = 0
    else:
        cut[far:, :, 3] = 0
    return cut


def target_view(rng: Rng, position: Position) -> View:
    """Draw the subject's view in the target picture."""
    return View(
        length=rng.uniform(0.56, 0.64),
        centre=(CENTRE_X[position] + rng.uniform(-0.015, 0.015), rng.uniform(0.51, 0.54)),
        turn_deg=rng.uniform(-8, 8),
        is_flipped=bool(rng.random() < 0.1),
        squash=rng.uniform(0.95, 1.05),
        light=rng.uniform(0.92, 1.0),
    )


def reference_view(rng: Rng, target: View, *, is_same_view: bool) -> View:
    """Draw a reference's view: the target's own with another scale and place, or a new one."""
    length = REFERENCE_LENGTH * rng.uniform(0.95, 1.05)
    centre = (0.5 + rng.uniform(-0.015, 0.015), 0.5 + rng.uniform(-0.015, 0.015))
    if is_same_view:
        return replace(target, length=length, centre=centre)
    edges: tuple[Edge, ...] = ("left", "right", "top", "bottom")
    is_cropped = rng.random() < 0.12
    return View(
        length=length,
        centre=centre,
        turn_deg=rng.uniform(-10, 10),
        is_flipped=bool(rng.random() < 0.1),
        squash=rng.uniform(0.93, 1.07),
        light=rng.uniform(0.9, 1.0),
        crop_edge=edges[int(rng.integers(4))] if is_cropped else "none",
        crop_share=rng.uniform(0.08, 0.2),
    )


def white(size_px: int) -> NDArray[np.uint8]:
    """Return a white picture, uint8 [S, S, 3]."""
    return np.full((size_px, size_px, 3), 255, dtype=np.uint8)


def reject_reason(sample: Sample) -> RejectReason | None:
    """Say why a sample cannot teach, or None: the counterpart of the paper's mask filter."""
    mask = sample.mask > 127
    if touches_border(mask):
        return "touches_border"
    if not 0.04 <= mask.mean() <= 0.6:
        return "area"
    return None


def touches_border(mask: NDArray[np.bool_]) -> bool:
    """Whether a mask, [S, S], reaches the border of its picture."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _contrast(
    target: NDArray[np.uint8], scene: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> float:
    inside = mask > 127
    if not inside.any():
        return 0.0
    difference = np.abs(target[inside].astype(np.float32) - scene[inside].astype(np.float32))
    return float(difference.mean())


def draw_sample(
    rng: Rng,
    sprite: NDArray[np.uint8],
    noun: str,
    config: WorldConfig,
    held_out_scenes: frozenset[str] = frozenset(),
) -> Sample | RejectReason:
    """Draw one sample of a subject, a sprite uint8 [P, P, 4] of the class `noun`.

    Returns:
        A `Sample`, or the reason why this draw is rejected: its scene may be one in which this
        class must not be seen in training.
    """
    caption = draw_caption(rng, noun)
    if caption.scene in held_out_scenes:
        return "held_out_combination"
    hue = float(rng.uniform(20, 340)) if rng.random() < config.hue_probability else 0.0
    subject = turn_hue(sprite, hue) if hue else sprite
    scene = draw_scene(caption.scene, rng, config.size_px)
    view = target_view(rng, caption.position)
    target, mask = place(subject, view, scene)
    if _contrast(target, scene, mask) < 12.0:
        return "low_contrast"
    is_same_view = bool(rng.random() < config.near_view_probability)
    weights = np.asarray(config.reference_counts)
    count = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    references = [
        place(
            subject,
            reference_view(rng, view, is_same_view=is_same_view and k == 0),
            white(config.size_px),
        )[0]
        for k in range(count)
    ]
    sample = Sample(target, mask, np.stack(references), caption, is_same_view, hue)
    return reject_reason(sample) or sample
