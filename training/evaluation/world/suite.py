"""What an evaluation in the 3-D world draws: subjects, their look-alikes, prompts, references.

Three groups, none of which training has seen: models whose class was trained on, classes of models
as a whole, and drawings, as cards. The look-alikes of a subject have its noun: other models or
artists, then itself in other colours or patterns, which no word of a prompt tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.captions import Position
from bootpig_rt.training.evaluation.suite import Shot, stream
from bootpig_rt.training.render.camera import Frame, View, frame_subject
from bootpig_rt.training.render.mesh import Pixels
from bootpig_rt.training.render.renderer import Backdrop, Look
from bootpig_rt.training.splits import Split
from bootpig_rt.training.world3d.captions import WorldCaption
from bootpig_rt.training.world3d.identities import (
    Identities,
    Identity,
    NamedLook,
    draw_look,
    load_identities,
)
from bootpig_rt.training.world3d.scenes import HELD_OUT_SCENES, WORLD_SCENES, SceneKind
from bootpig_rt.training.world3d.studio import Studio, daylight, plain_look

WorldGroup = Literal["models", "nouns", "drawings"]
GROUPS: tuple[WorldGroup, ...] = get_args(WorldGroup)
SPLIT_OF: Mapping[WorldGroup, Split] = {
    "models": "held_out_identity",
    "nouns": "held_out_concept",
    "drawings": "held_out_identity",
}
MAX_OTHERS = 2
"""Of the look-alikes, so many at most are other models or artists."""

MIN_APART = 12.0
"""Least mean difference of levels, 0 to 255, at which colours count as others."""

_HALF = 127
_AZIMUTHS = (35.0, -40.0, 110.0, -115.0)
_CARD_AZIMUTHS = (12.0, -16.0, 4.0, -8.0)
_ELEVATION = 16.0
_LENGTH = 0.86
_REPEATS = 1.7


@dataclass(frozen=True)
class WorldSuiteConfig:
    """How large an evaluation is.

    Attributes:
        name: What reports call it.
        models, nouns, drawings: Subjects of each group.
        prompts: Of each subject, each in another scene.
        seeds: Pictures of a prompt.
        candidates: A subject and its look-alikes.
        control_prompts: Of the controls, with one seed.
        counts: Numbers of references that are compared; 1 comes from the main pictures.
        kinds: Of the scenes.
        views: From so many sides candidates are seen.
        seed: Fixes every choice.
    """

    name: str = "world"
    models: int = 20
    nouns: int = 12
    drawings: int = 16
    prompts: int = 4
    seeds: int = 2
    candidates: int = 6
    control_prompts: int = 2
    counts: tuple[int, ...] = (1, 2, 4)
    kinds: tuple[SceneKind, ...] = ("drawn", "ground")
    views: int = 8
    seed: int = 0

    def size_of(self, group: WorldGroup) -> int:
        """Subjects of a group."""
        sizes = {"models": self.models, "nouns": self.nouns, "drawings": self.drawings}
        return sizes[group]


WORLD_SUITES = {
    "world": WorldSuiteConfig(),
    "world-tiny": WorldSuiteConfig(
        "world-tiny", 2, 1, 1, prompts=1, seeds=1, candidates=3, control_prompts=1, counts=(1, 2),
        views=3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LookAlike:
    """One way to look: who is shown, and how it is coloured."""

    identity: Identity
    named: NamedLook | None = None
    hue_deg: float = 0.0

    @property
    def name(self) -> str:
        """For reports."""
        colours = self.named.name if self.named else f"{self.hue_deg:.0f} deg" * bool(self.hue_deg)
        return " ".join(filter(None, (self.identity.key, colours)))

    def look(self, studio: Studio) -> Look:
        """What the renderer is told."""
        if self.named is None:
            return plain_look(self.hue_deg)
        return Look(studio.pattern_of(self.named), repeats=_REPEATS)


@dataclass(frozen=True)
class WorldSubject:
    """One identity to draw.

    Attributes:
        key: Tells it from all others.
        group: Why the model has not seen it.
        noun: What prompts call it.
        candidates: Itself, then its look-alikes.
        wrong: Index of the look-alike whose references the control gives.
        captions: What to draw it in.
    """

    key: str
    group: WorldGroup
    noun: str
    candidates: tuple[LookAlike, ...]
    wrong: int
    captions: tuple[WorldCaption, ...]

    @property
    def own_in_grey(self) -> tuple[int, ...]:
        """Itself and the candidates that only their hue tells from it."""
        own = self.candidates[0]
        return tuple(
            n
            for n, one in enumerate(self.candidates)
            if one.identity.key == own.identity.key and one.named == own.named
        )


def choose_world_subjects(
    folder: Path, studio: Studio, config: WorldSuiteConfig
) -> list[WorldSubject]:
    """Choose the subjects of a suite, their look-alikes and prompts.

    Raises:
        ConfigError: There are fewer held-out subjects than the suite asks for.
        InputError, StorageError: As for `load_identities`.
    """
    splits: tuple[Split, ...] = ("train", "held_out_identity", "held_out_concept")
    of_split = {split: load_identities(folder, split, with_drawings=True) for split in splits}
    found: list[WorldSubject] = []
    for group in GROUPS:
        people = of_split[SPLIT_OF[group]]
        pool = people.drawings if group == "drawings" else people.models
        chosen = _one_of_each(pool, config.seed)[: config.size_of(group)]
        if len(chosen) < config.size_of(group):
            raise ConfigError(
                f"suite {config.name} wants {config.size_of(group)} held-out {group} of different "
                f"nouns, {folder} has {len(chosen)}; fetch all of them with `bootpig-rt fetch-data "
                "--sprite-px 192` and `bootpig-rt fetch-data --set models-3d`"
            )
        for number, identity in enumerate(chosen):
            candidates = _candidates(identity, of_split, studio, config)
            rng = stream(config.seed, "wrong", identity.key)
            found.append(
                WorldSubject(
                    identity.key,
                    group,
                    identity.noun,
                    candidates,
                    1 + int(rng.integers(len(candidates) - 1)),
                    _captions(identity.noun, number, config),
                )
            )
    return found


def _one_of_each(pool: Sequence[Identity], seed: int) -> list[Identity]:
    """One identity of each noun, in an order that depends on the names alone."""
    ordered = sorted(pool, key=lambda one: stream(seed, "pick", one.key).random())
    return list({one.noun: one for one in reversed(ordered)}.values())[::-1]


def _candidates(
    own: Identity,
    of_split: Mapping[Split, Identities],
    studio: Studio,
    config: WorldSuiteConfig,
) -> tuple[LookAlike, ...]:
    rng = stream(config.seed, "look-alikes", own.key)
    others = [
        other
        for people in of_split.values()
        for other in (people.drawings if own.is_drawing else people.models)
        if (other.concept, other.noun) == (own.concept, own.noun) and other.key != own.key
    ]
    others.sort(key=lambda one: stream(config.seed, "other", own.key, one.key).random())
    found = [_coloured(own, studio, rng)]
    found += [_coloured(other, studio, rng) for other in others[:MAX_OTHERS]]
    del found[config.candidates :]
    # Turns that are far from each other and from the own colours; what has none gets patterns.
    missing = config.candidates - len(found)
    turns = [LookAlike(own, hue_deg=360 * (k + 1) / (missing + 1)) for k in range(missing)]
    if found[0].named is None and all(_looks_apart(found[0], one, studio) for one in turns):
        return (*found, *turns)
    for _ in range(missing):
        found.append(LookAlike(own, _other_look(rng, {one.named for one in found})))
    return tuple(found)


def _looks_apart(one: LookAlike, other: LookAlike, studio: Studio) -> bool:
    """Whether the colours of two candidates of one shape can be told apart."""
    first, second = (
        np.asarray(view_of(each, View(_AZIMUTHS[0], _ELEVATION), studio)) for each in (one, other)
    )
    inside = first[..., 3] > _HALF
    apart = np.abs(first[inside, :3].astype(float) - second[inside, :3]).mean()
    return bool(apart > MIN_APART)


def _coloured(identity: Identity, studio: Studio, rng: np.random.Generator) -> LookAlike:
    """An identity as it is; a model without colours of its own is given a look."""
    is_plain = not identity.is_drawing and studio.mesh_of(identity).is_plain
    return LookAlike(identity, draw_look(rng) if is_plain else None)


def _other_look(rng: np.random.Generator, taken: set[NamedLook | None]) -> NamedLook:
    while (look := draw_look(rng)) in taken:
        pass
    return look


def _captions(noun: str, number: int, config: WorldSuiteConfig) -> tuple[WorldCaption, ...]:
    """Scenes in turn, so that over the subjects all come up about equally often."""
    keys = [
        key
        for key, scene in WORLD_SCENES.items()
        if scene.kind in config.kinds and key not in HELD_OUT_SCENES
    ]
    order = stream(config.seed, "scenes").permutation(sorted(keys))
    start = number * config.prompts % len(order)
    scenes = [str(key) for key in (*order[start:], *order[:start])][: config.prompts]
    rng = stream(config.seed, "prompts", noun)
    positions: tuple[Position, ...] = ("left", "centre", "right")
    first = int(rng.integers(3))
    return tuple(
        WorldCaption(
            noun,
            positions[(first + k) % 3],
            "normal",
            scene,
            WORLD_SCENES[scene].phrases[int(rng.integers(len(WORLD_SCENES[scene].phrases)))],
        )
        for k, scene in enumerate(scenes)
    )


def reference_views(
    subject: WorldSubject, which: int, count: int, studio: Studio
) -> list[Image.Image]:
    """True views of one candidate on nothing, as a user would give them: RGBA.

    The first ones are the same whatever the count.
    """
    candidate = subject.candidates[which]
    if candidate.identity.is_drawing:
        views = [View(azimuth, 6.0) for azimuth in _CARD_AZIMUTHS[:count]]
    else:
        views = [View(azimuth, _ELEVATION) for azimuth in _AZIMUTHS[:count]]
    return [view_of(candidate, view, studio) for view in views]


def view_of(one: LookAlike, view: View, studio: Studio) -> Image.Image:
    """A candidate on nothing in neutral light, RGBA."""
    mesh, look, is_card = studio.mesh_of(one.identity), one.look(studio), one.identity.is_drawing
    white = np.ones(3, np.float32)
    light = daylight(view.azimuth_deg + 25, 50, sky=white, ground=white, level=1.0)
    camera = frame_subject(mesh.positions, view, Frame(_LENGTH))
    found = studio.renderer.render(mesh, camera, light, Backdrop(), look=look, is_flat=is_card)
    return Image.fromarray(np.dstack([straight(found.picture, found.mask), found.mask]))


def straight(picture: Pixels, mask: Pixels) -> Pixels:
    """Colours without the white that edges were drawn on, uint8 [S, S, 3]."""
    share = np.maximum(mask[..., None], 1) / 255
    return np.clip((picture - 255 * (1 - share)) / share + 0.5, 0, 255).astype(np.uint8)


def world_shots(
    subjects: Sequence[WorldSubject], config: WorldSuiteConfig
) -> dict[str, list[Shot]]:
    """All shots of an evaluation by arm; the renderer draws the last one."""
    numbers = range(len(subjects))
    main = [
        Shot(s, p, seed)
        for s in numbers
        for p in range(config.prompts)
        for seed in range(config.seeds)
    ]
    few = [(s, p) for s in numbers for p in range(min(config.control_prompts, config.prompts))]
    plan = {"main": main}
    plan["wrong_reference"] = [Shot(s, p, 0, "wrong") for s, p in few]
    plan["no_reference"] = [Shot(s, p, 0, "none", 0) for s, p in few]
    for count in config.counts:
        if count > 1:
            plan[f"references_{count}"] = [Shot(s, p, 0, "own", count) for s, p in few]
    plan["renderer"] = [Shot(s, p, 0) for s, p in few]
    return plan


def world_digest(subjects: Sequence[WorldSubject], config: WorldSuiteConfig, size_px: int) -> str:
    """sha256 of all that fixes what the shots of a suite mean."""
    told = [
        f"{one.key} {[each.name for each in one.candidates]} {one.wrong} {one.captions}"
        for one in subjects
    ]
    return hashlib.sha256("\n".join([f"{config} {size_px}", *told]).encode()).hexdigest()
