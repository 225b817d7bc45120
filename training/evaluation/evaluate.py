"""The evaluation itself: draw, judge, count.

Every rate is a mean over subjects with a bootstrap interval over subjects. The judges' own accuracy
is the same rate on the renderer's pictures of the same subjects and prompts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.evaluation.alignment import AlignmentJudge
from bootpig_rt.training.evaluation.copying import paste_rates
from bootpig_rt.training.evaluation.counting import (
    MAIN_JUDGE,
    Verdicts,
    combination_summary,
    fidelity_summary,
    group_summary,
    judge_accuracy,
    place_of,
    reference_curve,
    subset,
    summary,
    wrong_reference_summary,
)
from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
from bootpig_rt.training.evaluation.fidelity import FidelityJudge
from bootpig_rt.training.evaluation.generators import Generator, draw_shots, suite_digest
from bootpig_rt.training.evaluation.identity import (
    BLUR_PX,
    DRAWS,
    SIDES_PX,
    Candidates,
    FeatureJudge,
    IdentityJudge,
    colour_histogram,
    network_features,
)
from bootpig_rt.training.evaluation.render import RendererGenerator
from bootpig_rt.training.evaluation.scene_judge import scene_accuracy, scene_net, scenes_of
from bootpig_rt.training.evaluation.suite import (
    GROUPS,
    EvalSubject,
    Shot,
    SuiteConfig,
    control_shots,
    count_shots,
    main_shots,
    reference_pictures,
    stream,
)
from bootpig_rt.training.scenes import draw_scene

SceneJudge = Callable[[NDArray[np.uint8]], list[str]]
Measure = Callable[[Sequence[Shot], NDArray[np.uint8]], dict[str, list[float]]]
"""Shots and their pictures, to numbers by name, one for each picture."""
OnProgress = Callable[[str, int], None]
"""Told the arm and the number of its pictures just finished."""


@dataclass(frozen=True)
class Judges:
    """Who judges, how often the scene judge is right on fresh renders, and what is measured."""

    identity: Sequence[IdentityJudge]
    scene: SceneJudge
    scene_accuracy: float
    fidelity: Measure = lambda _, __: {}


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 2)


def build_judges(
    subjects: Sequence[EvalSubject],
    config: SuiteConfig,
    training_sprites: NDArray[np.uint8],
    *,
    size_px: int,
    cache: Path,
) -> Judges:
    """Make all judges; what takes long is kept in the folder `cache`.

    The scene judge learns from `training_sprites`, uint8 [M, P, P, 4].

    Raises:
        BackendUnavailable: The weights of the network judge are not installed.
        StorageError: The cache cannot be written.
    """
    network = load_efficientnet()
    candidates = Candidates(subjects, config, size_px=size_px)
    of = f"{suite_digest(subjects, config)} {size_px} {DRAWS} {SIDES_PX} {BLUR_PX}"
    digest = hashlib.sha256(of.encode()).hexdigest()[:16]
    net = scene_net(training_sprites, seed=config.seed, size_px=size_px, cache=cache)
    unseen = np.concatenate([subject.sprites[subject.own][None] for subject in subjects])
    return Judges(
        identity=(
            AlignmentJudge(subjects, config),
            AlignmentJudge(subjects, config, is_grey=True),
            FeatureJudge(
                "network",
                "cosine of EfficientNet-Lite0 features, ImageNet weights",
                network_features(network),
                parts=2,
                cache=cache / f"network-{digest}.npz",
                candidates=candidates,
            ),
            FeatureJudge(
                "colours",
                "colour histogram: lenient, it does not see shape",
                colour_histogram,
                parts=1,
                cache=cache / f"colours-{digest}.npz",
                candidates=candidates,
            ),
        ),
        scene=partial(scenes_of, net),
        scene_accuracy=scene_accuracy(net, unseen, seed=config.seed, size_px=size_px),
        fidelity=FidelityJudge(subjects, config, network),
    )


@dataclass(frozen=True)
class Evaluation:
    """A report for JSON, and the verdicts by arm for sheets."""

    report: dict[str, Any]
    arms: dict[str, Verdicts]


def evaluate(
    generator: Generator,
    judges: Judges,
    subjects: Sequence[EvalSubject],
    config: SuiteConfig,
    *,
    size_px: int,
    output: Path,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Draw the suite and judge it.

    Args:
        generator: Who draws.
        judges: See `build_judges`.
        subjects: See `choose_subjects`.
        config: The suite.
        size_px: Side of the pictures.
        output: Folder; pictures are kept in its `pictures`.
        resume: Go on with the pictures that are there.
        on_progress: Told about each finished chunk.

    Raises:
        StorageError: `output` cannot be written.
        InputError: The pair cannot draw the suite.
    """
    clock, digest = _Clock(), suite_digest(subjects, config)
    plan = planned_shots(subjects, config)
    renderer = partial(RendererGenerator, subjects, config, size_px=size_px)
    drawers = {"renderer": renderer(), "renderer_blurred": renderer(blur_px=1.0)}

    pictures: dict[str, NDArray[np.uint8]] = {}
    for arm, shots in plan.items():
        with clock.stage(f"draw {arm}"):
            pictures[arm] = draw_shots(
                drawers.get(arm, generator),
                shots,
                suite_digest=digest,
                folder=output / "pictures",
                resume=resume,
                on_progress=None if on_progress is None else partial(on_progress, arm),
            )
    with clock.stage("judge"):
        arms = _judge(plan, pictures, judges)
    with clock.stage("copying"):
        copying = _copying(arms, subjects, config, size_px)
    report = {
        "format": 1,
        "suite": asdict(config),
        "generator": generator.fingerprint,
        "main_judge": MAIN_JUDGE,
        "judges": judge_accuracy(arms, judges.identity, judges.scene_accuracy, subjects),
        "groups": {group: group_summary(arms["main"], subjects, group) for group in GROUPS},
        "held_out_combinations": combination_summary(arms["main"], subjects),
        "controls": {
            "wrong_reference": wrong_reference_summary(arms["wrong_reference"], subjects),
            "no_reference": summary(arms["no_reference"], subjects),
            "same_prompts_own_reference": summary(
                subset(arms["main"], {place_of(s) for s in plan["renderer"]}), subjects
            ),
            "copy_paste": copying,
        },
        "fidelity": {arm: fidelity_summary(found) for arm, found in arms.items()},
        "references": reference_curve(arms, subjects, config),
        "seconds": clock.seconds,
    }
    return Evaluation(report, arms)


def planned_shots(subjects: Sequence[EvalSubject], config: SuiteConfig) -> dict[str, list[Shot]]:
    """All shots of an evaluation, by arm; the renderer draws the arms that bear its name."""
    plan = {
        "main": main_shots(subjects, config),
        "wrong_reference": control_shots(subjects, config, "wrong"),
        "no_reference": control_shots(subjects, config, "none"),
    }
    for count in config.counts:
        if count > 1:
            plan[f"references_{count}"] = count_shots(subjects, config, count)
    for arm in ("renderer", "renderer_blurred"):
        plan[arm] = control_shots(subjects, config, "own")
    return plan


def _judge(
    shots: dict[str, list[Shot]], pictures: dict[str, NDArray[np.uint8]], judges: Judges
) -> dict[str, Verdicts]:
    """Judge all arms at once: judges prepare each (subject, prompt) only once then."""
    every = [shot for arm in shots for shot in shots[arm]]
    drawn = np.concatenate([pictures[arm] for arm in shots])
    chosen = {
        judge.name: [int(row.argmax()) for row in judge.scores(every, drawn)]
        for judge in judges.identity
    }
    scenes, measures = judges.scene(drawn), judges.fidelity(every, drawn)
    arms, start = {}, 0
    for arm, part in shots.items():
        end = start + len(part)
        picked = {name: found[start:end] for name, found in chosen.items()}
        measured = {name: values[start:end] for name, values in measures.items()}
        arms[arm] = Verdicts(part, pictures[arm], picked, scenes[start:end], measured)
        start = end
    return arms


def _copying(
    arms: dict[str, Verdicts], subjects: Sequence[EvalSubject], config: SuiteConfig, size_px: int
) -> dict[str, Any]:
    """Paste scores of the pair, of the renderer, and of real pastes."""
    views = [reference_pictures(subject, subject.own, 2, config.seed) for subject in subjects]
    own = subset(arms["main"], {place_of(shot) for shot in arms["renderer"].shots})
    pasted = [_paste(s, views[n][0], config, size_px) for n, s in enumerate(subjects)]
    drawn = {
        "pair": ([shot.subject for shot in own.shots], own.pictures),
        "renderer": ([s.subject for s in arms["renderer"].shots], arms["renderer"].pictures),
        "paste": (list(range(len(subjects))), np.stack(pasted)),
    }
    return paste_rates(drawn, views)


def _paste(
    subject: EvalSubject, reference: Image.Image, config: SuiteConfig, size_px: int
) -> NDArray[np.uint8]:
    """The reference itself, reduced, in the subject's first scene."""
    rng = stream(config.seed, "paste", subject.key)
    picture = Image.fromarray(draw_scene(subject.prompts[0].scene, rng, size_px))
    side = round(0.7 * size_px)
    small = reference.resize((side, side), Image.Resampling.LANCZOS)
    picture.paste(small, (size_px // 2 - side // 2, round(0.57 * size_px) - side // 2), small)
    return np.asarray(picture, dtype=np.uint8)
