"""One sample of the 3-D world: a subject in a scene, its mask and depth, and other views of it.

Everything is drawn from one generator, so a sample is a function of (seed, index). References are
other true views of the same subject in neutral light on white.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.captions import Position
from bootpig_rt.training.compose import touches_border
from bootpig_rt.training.render.camera import Frame, View, frame_subject
from bootpig_rt.training.render.light import Light, turned
from bootpig_rt.training.render.mesh import Floats, Mesh, Pixels
from bootpig_rt.training.render.renderer import Backdrop, Look, Rendering
from bootpig_rt.training.scenes import draw_scene
from bootpig_rt.training.world3d.captions import Size, WorldCaption, draw_placement
from bootpig_rt.training.world3d.config import World3dConfig
from bootpig_rt.training.world3d.identities import Identities, Identity, NamedLook, draw_look
from bootpig_rt.training.world3d.scenes import (
    FLOATING_SCENES,
    GROUND_COLOURS,
    HELD_OUT_SCENES,
    SCENE_KINDS,
    WORLD_SCENES,
    SceneKind,
    WorldScene,
    held_out_combination,
    scenes_of,
)
from bootpig_rt.training.world3d.studio import (
    Studio,
    daylight,
    ground_backdrop,
    linear,
    plain_look,
)

Rng = np.random.Generator
RejectReason = Literal["held_out", "touches_border", "area", "low_contrast"]

LENGTHS: dict[Size, tuple[float, float]] = {
    "small": (0.28, 0.36),
    "normal": (0.48, 0.6),
    "large": (0.68, 0.76),
    "close": (0.84, 0.9),
}
CENTRES: dict[Position, float] = {"left": 0.29, "centre": 0.5, "right": 0.71}
MIN_AREAS: dict[Size, float] = {"small": 0.012, "normal": 0.03, "large": 0.055, "close": 0.09}
MARGIN = 0.03
FAR_VIEW_DEG = 30.0
ALIKE_DEG = 10.0
"""Nearer views than this are near in height too."""
CARD_TURN_DEG = 25.0
"""Drawings are flat, so they are seen from the front."""


@dataclass(frozen=True)
class WorldSample:
    """One sample; pictures are uint8 [S, S, 3].

    Attributes:
        rendering: Target, mask and depth.
        references: On white.
        caption: With the choices behind it.
        identity: Who is shown.
        look: Name of what an untextured model was given, else empty.
        hue_deg: Turn of its colours.
        view: Of the target.
        reference_views: Of each reference.
    """

    rendering: Rendering
    references: list[Pixels]
    caption: WorldCaption
    identity: Identity
    look: str
    hue_deg: float
    view: View
    reference_views: list[View]


def draw_world_sample(
    rng: Rng, identities: Identities, studio: Studio, config: World3dConfig
) -> WorldSample | RejectReason:
    """Draw one sample, or say why this draw is rejected."""
    identity = identities.draw(rng, config.drawing_share)
    scene = draw_world_scene(rng, config)
    if scene.key in HELD_OUT_SCENES or scene.key == held_out_combination(identity.noun):
        return "held_out"
    mesh = studio.mesh_of(identity)
    named: NamedLook | None = None
    hue = float(rng.uniform(20, 340)) if rng.random() < config.hue_probability else 0.0
    look = plain_look(hue)
    if not identity.is_drawing and mesh.is_plain:
        named, hue = draw_look(rng), 0.0
        if named.is_held_out and identities.split == "train":
            return "held_out"
        look = Look(studio.pattern_of(named), repeats=float(rng.uniform(1.2, 2.2)))
    position, size = draw_placement(
        rng, size_weights=config.sizes.as_tuple(), side_share=config.side_share
    )
    phrase = scene.phrases[int(rng.integers(len(scene.phrases)))]
    caption = WorldCaption(identity.noun, position, size, scene.key, phrase)
    view = draw_view(rng, scene.kind, is_drawing=identity.is_drawing)
    rendering = draw_target(rng, mesh, look, caption, view, studio, is_flat=identity.is_drawing)
    if reason := reject_reason(rendering, size):
        return reason
    weights = np.asarray(config.reference_counts)
    count = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    is_far = bool(rng.random() < config.far_view_share)
    views = [
        draw_reference_view(
            rng,
            view,
            is_far=is_far or k > 0,
            is_drawing=identity.is_drawing,
            near_deg=config.near_view_deg,
        )
        for k in range(count)
    ]
    references = [
        draw_reference(
            rng, mesh, look, each, studio, config.reference_length, is_flat=identity.is_drawing
        )
        for each in views
    ]
    name = named.name if named else ""
    return WorldSample(rendering, references, caption, identity, name, hue, view, views)


def draw_world_scene(rng: Rng, config: World3dConfig) -> WorldScene:
    """Draw a kind of scene by its weight, then one of that kind."""
    weights = np.asarray(config.scenes.as_tuple())
    kind = SCENE_KINDS[int(rng.choice(len(SCENE_KINDS), p=weights / weights.sum()))]
    keys = [key for key in scenes_of(kind) if key not in config.without_scenes]
    return WORLD_SCENES[keys[int(rng.integers(len(keys)))]]


def draw_view(rng: Rng, kind: SceneKind, *, is_drawing: bool) -> View:
    """Draw from where the target is seen: mostly from the front, and from a little above."""
    if is_drawing:
        return View(float(rng.uniform(-CARD_TURN_DEG, CARD_TURN_DEG)), float(rng.uniform(2, 10)))
    from_front = rng.random() < 0.7
    azimuth = rng.uniform(-75, 75) if from_front else rng.uniform(75, 285)
    low, high = {"drawn": (5, 16), "ground": (8, 30), "panorama": (6, 20)}[kind]
    return View(float(azimuth), float(rng.uniform(low, high)))


def draw_reference_view(
    rng: Rng, target: View, *, is_far: bool, is_drawing: bool, near_deg: float
) -> View:
    """Draw from where a reference is seen: near the target's view, or at least 30 degrees away."""
    if near_deg < ALIKE_DEG and not is_far:
        to_side, up = rng.uniform(-near_deg, near_deg, 2)
        return View(target.azimuth_deg + float(to_side), max(2.0, target.elevation_deg + float(up)))
    if is_drawing:
        return View(float(rng.uniform(-CARD_TURN_DEG, CARD_TURN_DEG)), float(rng.uniform(2, 10)))
    elevation = float(rng.uniform(4, 35))
    if not is_far:
        away = rng.uniform(-near_deg, near_deg)
        return View(target.azimuth_deg + float(away), elevation)
    away = rng.uniform(FAR_VIEW_DEG, 150) * (1 if rng.random() < 0.5 else -1)
    return View(target.azimuth_deg + float(away), elevation)


def draw_frame(rng: Rng, position: Position, size: Size, *, floats: bool) -> Frame:
    """Draw where the subject is in the picture, as a prompt says."""
    length = float(rng.uniform(*LENGTHS[size]))
    centre = CENTRES[position] + float(rng.uniform(-0.025, 0.025))
    # All of it is to be seen.
    half = length / 2 + MARGIN
    centre = min(max(centre, half), 1 - half)
    if floats:
        low, high = half, 1 - half
        y = min(max(0.5 + float(rng.uniform(-0.06, 0.06)), low), high)
        return Frame(length, centre, y)
    base = {
        "small": (0.72, 0.86),
        "normal": (0.8, 0.9),
        "large": (0.88, 0.94),
        "close": (0.94, 0.96),
    }
    return Frame(length, centre, float(rng.uniform(*base[size])), stands=True)


def draw_target(
    rng: Rng,
    mesh: Mesh,
    look: Look,
    caption: WorldCaption,
    view: View,
    studio: Studio,
    *,
    is_flat: bool,
) -> Rendering:
    """Draw a subject in a scene, from a view, where a caption says.

    Also the renderer's own picture that a generated one is compared with.
    """
    scene = WORLD_SCENES[caption.scene]
    floats = scene.key in FLOATING_SCENES
    frame = draw_frame(rng, caption.position, caption.size, floats=floats)
    backdrop, light = _place_of(rng, scene, view, studio)
    camera = frame_subject(mesh.positions, view, frame)
    return studio.renderer.render(mesh, camera, light, backdrop, look=look, is_flat=is_flat)


def draw_reference(
    rng: Rng,
    mesh: Mesh,
    look: Look,
    view: View,
    studio: Studio,
    length: float,
    *,
    is_flat: bool,
) -> Pixels:
    """Draw a subject in neutral light on white, uint8 [S, S, 3]."""
    frame = Frame(
        length * float(rng.uniform(0.95, 1.05)),
        0.5 + float(rng.uniform(-0.015, 0.015)),
        0.5 + float(rng.uniform(-0.015, 0.015)),
    )
    white = np.ones(3, np.float32)
    light = daylight(
        view.azimuth_deg + float(rng.uniform(-60, 60)),
        float(rng.uniform(40, 60)),
        sky=white,
        ground=white,
        level=1.0,
    )
    camera = frame_subject(mesh.positions, view, frame)
    found = studio.renderer.render(mesh, camera, light, Backdrop(), look=look, is_flat=is_flat)
    return found.picture


def _place_of(rng: Rng, scene: WorldScene, view: View, studio: Studio) -> tuple[Backdrop, Light]:
    """What is behind and under the subject, and the light there."""
    sun_deg = view.azimuth_deg + float(rng.uniform(-100, 100))
    if scene.kind == "panorama":
        panorama = studio.panorama_of(scene.source)
        own = np.degrees(np.arctan2(panorama.light.direction[0], panorama.light.direction[2]))
        # The panorama is turned so that the sun is not behind the subject.
        turn = (sun_deg - float(own)) / 360
        backdrop = Backdrop(
            "panorama",
            panorama.pixels,
            shade=0.75,
            height=float(rng.uniform(1.2, 2.2)),
            turn=turn,
            brightness=scene.brightness * float(rng.uniform(0.85, 1.15)),
        )
        return backdrop, turned(panorama.light, turn)
    elevation = float(rng.uniform(38, 65))
    if scene.kind == "ground":
        sky, ground = (linear_of(scene, k) for k in (1, 0))
        light = daylight(sun_deg, elevation, sky=sky, ground=ground, level=0.95)
        return ground_backdrop(studio, scene), light
    picture = draw_scene(scene.key, rng, studio.renderer.size_px)
    third = picture.shape[0] // 3
    sky, ground = (
        _softened(linear(part.reshape(-1, 3).mean(axis=0)))
        for part in (picture[:third], picture[-third:])
    )
    shade = 0.0 if scene.key in FLOATING_SCENES else 0.68
    light = daylight(sun_deg, elevation, sky=sky, ground=ground, level=0.95)
    return Backdrop("picture", picture, shade=shade), light


def linear_of(scene: WorldScene, which: int) -> Floats:
    """The softened linear colour of a ground (0) or of what is behind it (1)."""
    return _softened(linear(GROUND_COLOURS[scene.colours[which]]))


def _softened(colour: Floats) -> Floats:
    """A colour of light: a quarter of a scene's own tint, as bright as white light."""
    own = colour / max(float(colour.mean()), 1e-3)
    return np.asarray(0.75 + 0.25 * np.minimum(own, 2.0), np.float32)


def reject_reason(rendering: Rendering, size: Size) -> RejectReason | None:
    """Say why a picture cannot teach, or None."""
    mask = rendering.mask > 127
    if touches_border(mask):
        return "touches_border"
    if not MIN_AREAS[size] <= mask.mean() <= 0.8:
        return "area"
    if _edge_contrast(rendering.picture, mask) < 9.0:
        return "low_contrast"
    return None


def _edge_contrast(picture: Pixels, mask: NDArray[np.bool_]) -> float:
    """Mean difference of levels between a subject and what is just outside of it."""
    near = mask.copy()
    for _ in range(3):
        wide = near.copy()
        wide[1:] |= near[:-1]
        wide[:-1] |= near[1:]
        wide[:, 1:] |= near[:, :-1]
        wide[:, :-1] |= near[:, 1:]
        near = wide
    around = near & ~mask
    inside = picture[mask].astype(np.float32)
    outside = picture[around].astype(np.float32)
    if not len(inside) or not len(outside):
        return 0.0
    return float(np.abs(inside.mean(0) - outside.mean(0)).mean() + inside.std(0).mean() * 0.5)
