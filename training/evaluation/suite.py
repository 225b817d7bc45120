"""What an evaluation draws: subjects, prompts, references and seeds, all fixed by one seed.

Two groups of subjects: held-out identities (other styles of their concept were trained on) and
held-out concepts (no style was). Each subject gets its own eight prompts, so that all scenes come
up about equally often; where a combination of its concept and a scene was held out, that scene is
one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.captions import Caption, Position
from bootpig_rt.training.compose import place, reference_view, target_view
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.splits import Splits
from bootpig_rt.training.sprites import Sprite

Group = Literal["identities", "concepts"]
Arm = Literal["own", "wrong", "none"]
GROUPS: tuple[Group, ...] = ("identities", "concepts")
REFERENCE_PX = 128
MIN_STYLES = 5


@dataclass(frozen=True)
class SuiteConfig:
    """How large an evaluation is.

    Attributes:
        name: What reports call it.
        identities: Held-out identities, each of another concept.
        concepts: Held-out concepts, one style of each is the subject.
        prompts: Prompts of each subject.
        seeds: Pictures of each prompt.
        control_prompts: Prompts of the wrong-reference and no-reference controls, one seed each.
        counts: Numbers of references of the curve; 1 comes from the main pictures.
        count_subjects: Held-out identities of the curve.
        count_prompts: Prompts of the curve, one seed each.
        seed: Fixes every choice.
        excludes: A suite whose subjects this one never draws, so that what is chosen by one is
            not scored by the other; empty for none.
    """

    name: str = "small"
    identities: int = 30
    concepts: int = 20
    prompts: int = 8
    seeds: int = 2
    control_prompts: int = 4
    counts: tuple[int, ...] = (1, 2, 3, 4)
    count_subjects: int = 30
    count_prompts: int = 3
    seed: int = 0
    excludes: str = ""


SUITES = {
    "small": SuiteConfig(),
    "tiny": SuiteConfig("tiny", 3, 2, 2, 1, 1, (1, 2), 2, 1),
    # Settings such as guidance scales are picked here and reported on "small".
    "tuning": SuiteConfig("tuning", 30, 0, 4, 1, 1, (1, 2), 10, 1, seed=1, excludes="small"),
}


@dataclass(frozen=True)
class Prompt:
    """A scene, a position, and whether the scene was held out for the subject's concept."""

    scene: str
    scene_phrase: str
    position: Position
    is_held_out: bool


@dataclass(frozen=True)
class EvalSubject:
    """One identity to draw, among all styles of its concept.

    Attributes:
        key: "concept/style".
        group: Why the model has not seen it.
        noun: What prompts call it.
        styles: Names of all styles of the concept.
        sprites: uint8 [K, P, P, 4], their drawings.
        own: Index of the subject itself.
        wrong: Index of another style, drawn at random: the reference of the control.
        prompts: What to draw it in.
    """

    key: str
    group: Group
    noun: str
    styles: tuple[str, ...]
    sprites: NDArray[np.uint8]
    own: int
    wrong: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Shot:
    """One picture to draw. `subject` and `prompt` are indices into the suite."""

    subject: int
    prompt: int
    seed: int
    arm: Arm = "own"
    num_references: int = 1

    @property
    def tag(self) -> str:
        """Short and unique within a suite."""
        return json.dumps(asdict(self), sort_keys=True)


def stream(*names: object) -> np.random.Generator:
    """A random generator fixed by names: no draw depends on what else is drawn."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def choose_subjects(
    sprites: Sequence[Sprite], splits: Splits, config: SuiteConfig
) -> list[EvalSubject]:
    """Choose the subjects of a suite and their prompts.

    Raises:
        ConfigError: There are fewer held-out subjects than the suite asks for.
    """
    by_concept: dict[str, list[Sprite]] = defaultdict(list)
    for sprite in sprites:
        by_concept[sprite.drawing.concept].append(sprite)
    wide = {c: s for c, s in sorted(by_concept.items()) if len(s) >= MIN_STYLES}
    taken: set[str] = set()
    if config.excludes:
        others = choose_subjects(sprites, splits, SUITES[config.excludes])
        taken = {subject.key.partition("/")[0] for subject in others}
    found: dict[Group, list[tuple[str, int]]] = {"identities": [], "concepts": []}
    for concept, styles in wide.items():
        if concept in taken:
            continue
        split = [sprite.split for sprite in styles]
        held_out = [k for k, name in enumerate(split) if name == "held_out_identity"]
        if held_out:
            found["identities"].append((concept, held_out[0]))
        elif split[0] == "held_out_concept":
            own = int(stream(config.seed, "style", concept).integers(len(styles)))
            found["concepts"].append((concept, own))
    scenes_of = splits.held_out_scenes()
    subjects: list[EvalSubject] = []
    for group, count in (("identities", config.identities), ("concepts", config.concepts)):
        pool = found[group]  # type: ignore[index]
        if len(pool) < count:
            raise ConfigError(
                f"the suite wants {count} held-out {group} with {MIN_STYLES} styles or more, "
                f"the data has {len(pool)}; make it with `bootpig-rt fetch-data`"
            )
        pool = sorted(pool, key=lambda pair: stream(config.seed, "pick", pair[0]).random())
        for place_in_group, (concept, own) in enumerate(pool[:count]):
            prompts = _prompts(concept, place_in_group, scenes_of.get(concept, frozenset()), config)
            subjects.append(_subject(group, wide[concept], own, prompts, config))  # type: ignore[arg-type]
    return subjects


def _subject(
    group: Group,
    styles: Sequence[Sprite],
    own: int,
    prompts: tuple[Prompt, ...],
    config: SuiteConfig,
) -> EvalSubject:
    drawing = styles[own].drawing
    key = f"{drawing.concept}/{drawing.style}"
    others = [k for k in range(len(styles)) if k != own]
    return EvalSubject(
        key=key,
        group=group,
        noun=drawing.noun,
        styles=tuple(sprite.drawing.style for sprite in styles),
        sprites=np.stack([sprite.rgba for sprite in styles]),
        own=own,
        wrong=others[int(stream(config.seed, "wrong", key).integers(len(others)))],
        prompts=prompts,
    )


def _prompts(
    concept: str, number: int, held_out: frozenset[str], config: SuiteConfig
) -> tuple[Prompt, ...]:
    """Scenes in turn, so that over the subjects all come up equally often; held-out ones first."""
    # The same order for every subject, begun at another place: a stride would miss scenes.
    order = list(stream(config.seed, "scenes").permutation(sorted(SCENES)))
    start = number * config.prompts % len(order)
    turn = [str(scene) for scene in order[start:] + order[:start] if scene not in held_out]
    scenes = (sorted(held_out) + turn)[: config.prompts]
    rng = stream(config.seed, "prompts", concept)
    positions: tuple[Position, ...] = ("left", "centre", "right")
    first = int(rng.integers(3))
    return tuple(
        Prompt(
            scene,
            SCENES[scene].phrases[int(rng.integers(len(SCENES[scene].phrases)))],
            positions[(first + k) % 3],
            scene in held_out,
        )
        for k, scene in enumerate(scenes)
    )


def caption_of(subject: EvalSubject, prompt: Prompt) -> Caption:
    """The words that ask for a picture."""
    return Caption(subject.noun, prompt.position, prompt.scene, prompt.scene_phrase)


def reference_pictures(
    subject: EvalSubject, which: int, count: int, seed: int
) -> list[Image.Image]:
    """Views of one style on nothing, as a user would give them: RGBA, never cut off.

    The first ones are the same whatever the count.
    """
    pictures = []
    for number in range(count):
        rng = stream(seed, "reference", subject.key, which, number)
        target = target_view(rng, "centre")
        view = replace(reference_view(rng, target, is_same_view=False), crop_edge="none")
        black = np.zeros((REFERENCE_PX, REFERENCE_PX, 3), np.uint8)
        colour, alpha = place(subject.sprites[which], view, black)
        # `place` lays over black, which leaves colour times alpha: divide it out.
        share = np.maximum(alpha[..., None], 1) / 255.0
        straight = np.clip(colour / share + 0.5, 0, 255).astype(np.uint8)
        pictures.append(Image.fromarray(np.dstack([straight, alpha])))
    return pictures


def main_shots(subjects: Sequence[EvalSubject], config: SuiteConfig) -> list[Shot]:
    """Every subject in each of its prompts, with each seed."""
    return [
        Shot(s, p, seed)
        for s, subject in enumerate(subjects)
        for p in range(len(subject.prompts))
        for seed in range(config.seeds)
    ]


def control_shots(subjects: Sequence[EvalSubject], config: SuiteConfig, arm: Arm) -> list[Shot]:
    """The first prompts and the first seed of every subject, with another reference or none."""
    return [
        Shot(s, p, 0, arm, 0 if arm == "none" else 1)
        for s, subject in enumerate(subjects)
        for p in range(min(config.control_prompts, len(subject.prompts)))
    ]


def count_shots(subjects: Sequence[EvalSubject], config: SuiteConfig, count: int) -> list[Shot]:
    """The subset of the curve over the number of references."""
    numbers = [s for s, subject in enumerate(subjects) if subject.group == "identities"]
    return [
        Shot(s, p, 0, "own", count)
        for s in numbers[: config.count_subjects]
        for p in range(min(config.count_prompts, len(subjects[s].prompts)))
    ]
