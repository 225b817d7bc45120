"""The evaluation itself: draw, judge, count.

Every rate is a mean over subjects with a bootstrap interval over subjects. The judges' own accuracy
is the same rate on the renderer's pictures of the same subjects and prompts.
"""

from __future__ import annotations

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
from bootpig_rt.training.evaluation.copying import paste_score
from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
from bootpig_rt.training.evaluation.generators import Generator, draw_shots, suite_digest
from bootpig_rt.training.evaluation.identity import (
    Candidates,
    FeatureJudge,
    IdentityJudge,
    colour_histogram,
    network_features,
)
from bootpig_rt.training.evaluation.render import RendererGenerator
from bootpig_rt.training.evaluation.scene_judge import scene_accuracy, scene_net, scenes_of
from bootpig_rt.training.evaluation.statistics import rate
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

MAIN_JUDGE = "pixels"
SceneJudge = Callable[[NDArray[np.uint8]], list[str]]
OnProgress = Callable[[str, int], None]
"""Told the arm and the number of its pictures just finished."""


@dataclass(frozen=True)
class Judges:
    """Who judges, and how often the scene judge is right on fresh renders."""

    identity: Sequence[IdentityJudge]
    scene: SceneJudge
    scene_accuracy: float


@dataclass(frozen=True)
class Verdicts:
    """Pictures of one arm and what the judges say about them.

    Attributes:
        shots: N.
        pictures: uint8 [N, S, S, 3].
        chosen: By judge, the index of the style that each picture is nearest to.
        scenes: The scene of each picture.
    """

    shots: list[Shot]
    pictures: NDArray[np.uint8]
    chosen: dict[str, list[int]]
    scenes: list[str]


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
    """Make all judges; what takes long is kept in `cache`.

    Args:
        subjects: Of the suite.
        config: Of the suite.
        training_sprites: uint8 [M, P, P, 4], for the scene judge to learn from.
        size_px: Side of the pictures.
        cache: Folder.

    Raises:
        BackendUnavailable: The weights of the network judge are not installed.
        StorageError: The cache cannot be written.
    """
    network = load_efficientnet()
    candidates = Candidates(subjects, config, size_px=size_px)
    digest = f"{suite_digest(subjects, config)} {size_px}"
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
                cache=cache / f"network-{config.name}.npz",
                key=digest,
                candidates=candidates,
            ),
            FeatureJudge(
                "colours",
                "colour histogram: lenient, it does not see shape",
                colour_histogram,
                parts=1,
                cache=cache / f"colours-{config.name}.npz",
                key=digest,
                candidates=candidates,
            ),
        ),
        scene=partial(scenes_of, net),
        scene_accuracy=scene_accuracy(net, unseen, seed=config.seed, size_px=size_px),
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
        "judges": _judge_accuracy(arms, judges, subjects),
        "groups": {group: _group(arms["main"], subjects, group) for group in GROUPS},
        "held_out_combinations": _combinations(arms["main"], subjects),
        "controls": {
            "wrong_reference": _wrong_reference(arms["wrong_reference"], subjects),
            "no_reference": _summary(arms["no_reference"], subjects),
            "same_prompts_own_reference": _summary(
                _subset(arms["main"], {_place(s) for s in plan["renderer"]}), subjects
            ),
            "copy_paste": copying,
        },
        "references": _curve(arms, subjects, config),
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
    scenes = judges.scene(drawn)
    arms, start = {}, 0
    for arm, part in shots.items():
        end = start + len(part)
        picked = {name: found[start:end] for name, found in chosen.items()}
        arms[arm] = Verdicts(part, pictures[arm], picked, scenes[start:end])
        start = end
    return arms


def _place(shot: Shot) -> tuple[int, int, int]:
    return shot.subject, shot.prompt, shot.seed


def _subset(verdicts: Verdicts, places: set[tuple[int, int, int]]) -> Verdicts:
    keep = [n for n, shot in enumerate(verdicts.shots) if _place(shot) in places]
    return _rows(verdicts, keep)


def _rows(verdicts: Verdicts, keep: Sequence[int]) -> Verdicts:
    return Verdicts(
        [verdicts.shots[n] for n in keep],
        verdicts.pictures[list(keep)],
        {name: [found[n] for n in keep] for name, found in verdicts.chosen.items()},
        [verdicts.scenes[n] for n in keep],
    )


def identity_hits(verdicts: Verdicts, subjects: Sequence[EvalSubject], judge: str) -> list[bool]:
    """Whether each picture is nearest to the subject that the prompt's own reference shows."""
    pairs = zip(verdicts.shots, verdicts.chosen[judge], strict=True)
    return [style == subjects[shot.subject].own for shot, style in pairs]


def scene_hits(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> list[bool]:
    """Whether each picture shows the scene that its prompt names."""
    pairs = zip(verdicts.shots, verdicts.scenes, strict=True)
    return [scene == subjects[s.subject].prompts[s.prompt].scene for s, scene in pairs]


def _rate(values: Sequence[float], verdicts: Verdicts) -> dict[str, Any] | None:
    found = rate(values, [shot.subject for shot in verdicts.shots])
    return None if found is None else found.to_dict()


def _chance(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> float | None:
    numbers = sorted({shot.subject for shot in verdicts.shots})
    if not numbers:
        return None
    return round(float(np.mean([1 / len(subjects[n].styles) for n in numbers])), 4)


def _summary(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
    """Chance, identity by judge, scenes."""
    identity = {}
    for judge in verdicts.chosen:
        identity[judge] = _rate(identity_hits(verdicts, subjects, judge), verdicts)
    scene = _rate(scene_hits(verdicts, subjects), verdicts)
    return {"chance": _chance(verdicts, subjects), "identity": identity, "scene": scene}


def _group(verdicts: Verdicts, subjects: Sequence[EvalSubject], group: str) -> dict[str, Any]:
    keep = [n for n, s in enumerate(verdicts.shots) if subjects[s.subject].group == group]
    part = _rows(verdicts, keep)
    summary = _summary(part, subjects)
    both = np.logical_and(
        identity_hits(part, subjects, MAIN_JUDGE), scene_hits(part, subjects)
    ).tolist()
    main = summary["identity"][MAIN_JUDGE]
    ratio = None if main is None else round(main["value"] / summary["chance"], 3)
    by_subject = {}
    for number in sorted({shot.subject for shot in part.shots}):
        own = [n for n, shot in enumerate(part.shots) if shot.subject == number]
        hits = identity_hits(_rows(part, own), subjects, MAIN_JUDGE)
        by_subject[subjects[number].key] = round(float(np.mean(hits)), 4)
    return summary | {
        "times_chance": ratio,
        "identity_and_scene": _rate(both, part),
        "by_subject": by_subject,
    }


def _combinations(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
    """Held-out (concept, scene) pairs, and the other prompts of the same subjects beside them."""

    def is_held_out(shot: Shot) -> bool:
        return subjects[shot.subject].prompts[shot.prompt].is_held_out

    having = {shot.subject for shot in verdicts.shots if is_held_out(shot)}
    held = [n for n, shot in enumerate(verdicts.shots) if is_held_out(shot)]
    others = [
        n
        for n, shot in enumerate(verdicts.shots)
        if shot.subject in having and not is_held_out(shot)
    ]
    return {
        "held_out": _summary(_rows(verdicts, held), subjects),
        "other_prompts_of_the_same_subjects": _summary(_rows(verdicts, others), subjects),
    }


def _wrong_reference(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
    """Own: hits of the identity that was not given. Given: hits of the reference that was."""
    given = {}
    for judge, chosen in verdicts.chosen.items():
        pairs = zip(verdicts.shots, chosen, strict=True)
        hits = [style == subjects[shot.subject].wrong for shot, style in pairs]
        given[judge] = _rate(hits, verdicts)
    return _summary(verdicts, subjects) | {"identity_of_the_given_reference": given}


def _curve(
    arms: dict[str, Verdicts], subjects: Sequence[EvalSubject], config: SuiteConfig
) -> dict[str, Any]:
    """The same subjects, prompts and noise with more and more references."""
    places = {_place(shot) for shot in count_shots(subjects, config, 1)}
    curve = {"1": _summary(_subset(arms["main"], places), subjects)}
    for count in config.counts:
        if count > 1:
            curve[str(count)] = _summary(arms[f"references_{count}"], subjects)
    return curve


def _judge_accuracy(
    arms: dict[str, Verdicts], judges: Judges, subjects: Sequence[EvalSubject]
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for judge in judges.identity:
        report[judge.name] = {
            "about": judge.about,
            "renderer": _rate(
                identity_hits(arms["renderer"], subjects, judge.name), arms["renderer"]
            ),
            "renderer_blurred": _rate(
                identity_hits(arms["renderer_blurred"], subjects, judge.name),
                arms["renderer_blurred"],
            ),
        }
    report["scene"] = {
        "about": "small network over the scenes, taught with renders of training drawings",
        "fresh_renders": round(judges.scene_accuracy, 4),
        "renderer": _rate(scene_hits(arms["renderer"], subjects), arms["renderer"]),
        "renderer_blurred": _rate(
            scene_hits(arms["renderer_blurred"], subjects), arms["renderer_blurred"]
        ),
    }
    return report


def _copying(
    arms: dict[str, Verdicts], subjects: Sequence[EvalSubject], config: SuiteConfig, size_px: int
) -> dict[str, Any]:
    """Paste scores of the pair, of the renderer, and of real pastes.

    The gap is the score of the view that was given less that of another view of the same drawing,
    which was not: 0 where the view has no say, above 0 where the given view is copied.
    """
    views = [reference_pictures(subject, subject.own, 2, config.seed) for subject in subjects]
    own = _subset(arms["main"], {_place(shot) for shot in arms["renderer"].shots})
    pasted = [_paste(s, views[n][0], config, size_px) for n, s in enumerate(subjects)]
    drawn = {
        "pair": ([shot.subject for shot in own.shots], own.pictures),
        "renderer": ([s.subject for s in arms["renderer"].shots], arms["renderer"].pictures),
        "paste": (list(range(len(subjects))), np.stack(pasted)),
    }
    report: dict[str, Any] = {}
    for name, (numbers, pictures) in drawn.items():
        given = [paste_score(p, views[n][0]) for n, p in zip(numbers, pictures, strict=True)]
        other = [paste_score(p, views[n][1]) for n, p in zip(numbers, pictures, strict=True)]
        gaps = [a - b for a, b in zip(given, other, strict=True)]
        score, gap = rate(given, numbers), rate(gaps, numbers)
        report[name] = {
            "score": None if score is None else score.to_dict(),
            "gap": None if gap is None else gap.to_dict(),
        }
    return report


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
