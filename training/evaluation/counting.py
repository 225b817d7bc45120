"""Counting: from verdicts of the judges to rates, by group, control and number of references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.evaluation.identity import IdentityJudge
from bootpig_rt.training.evaluation.statistics import Rate, rate, rounded
from bootpig_rt.training.evaluation.suite import EvalSubject, Shot, SuiteConfig, count_shots

MAIN_JUDGE = "pixels"


@dataclass(frozen=True)
class Verdicts:
    """Pictures of one arm, uint8 [N, S, S, 3], and what the judges say about them, N each.

    `chosen` holds by judge the index of the style that each picture is nearest to, `scenes` the
    scene that each shows, `measures` by name a number for each; see `fidelity`.
    """

    shots: list[Shot]
    pictures: NDArray[np.uint8]
    chosen: dict[str, list[int]]
    scenes: list[str]
    measures: dict[str, list[float]] = field(default_factory=dict)


def place_of(shot: Shot) -> tuple[int, int, int]:
    """Subject, prompt and seed: what arms share."""
    return shot.subject, shot.prompt, shot.seed


def subset(verdicts: Verdicts, places: set[tuple[int, int, int]]) -> Verdicts:
    """Pictures of some places."""
    keep = [n for n, shot in enumerate(verdicts.shots) if place_of(shot) in places]
    return rows_of(verdicts, keep)


def rows_of(verdicts: Verdicts, keep: Sequence[int]) -> Verdicts:
    """Some pictures of an arm, by number."""
    return Verdicts(
        [verdicts.shots[n] for n in keep],
        verdicts.pictures[list(keep)],
        {name: [found[n] for n in keep] for name, found in verdicts.chosen.items()},
        [verdicts.scenes[n] for n in keep],
        {name: [found[n] for n in keep] for name, found in verdicts.measures.items()},
    )


def identity_hits(verdicts: Verdicts, subjects: Sequence[EvalSubject], judge: str) -> list[bool]:
    """Whether each picture is nearest to the subject that the prompt's own reference shows."""
    pairs = zip(verdicts.shots, verdicts.chosen[judge], strict=True)
    return [style == subjects[shot.subject].own for shot, style in pairs]


def scene_hits(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> list[bool]:
    """Whether each picture shows the scene that its prompt names."""
    pairs = zip(verdicts.shots, verdicts.scenes, strict=True)
    return [scene == subjects[s.subject].prompts[s.prompt].scene for s, scene in pairs]


def rate_of(values: Sequence[float], verdicts: Verdicts) -> Rate | None:
    """Rate with its interval by subject, for JSON; None without pictures."""
    return rounded(rate(values, [shot.subject for shot in verdicts.shots]))


def _chance(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> float | None:
    numbers = sorted({shot.subject for shot in verdicts.shots})
    if not numbers:
        return None
    return round(float(np.mean([1 / len(subjects[n].styles) for n in numbers])), 4)


def summary(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
    """Chance, identity by judge, scenes, and the mean of each measure."""
    identity = {}
    for judge in verdicts.chosen:
        identity[judge] = rate_of(identity_hits(verdicts, subjects, judge), verdicts)
    scene = rate_of(scene_hits(verdicts, subjects), verdicts)
    return {
        "chance": _chance(verdicts, subjects),
        "identity": identity,
        "scene": scene,
        "fidelity": fidelity_summary(verdicts),
    }


def fidelity_summary(verdicts: Verdicts) -> dict[str, Any]:
    """Means of the measures with their intervals by subject."""
    return {name: rate_of(values, verdicts) for name, values in verdicts.measures.items()}


def group_summary(
    verdicts: Verdicts, subjects: Sequence[EvalSubject], group: str
) -> dict[str, Any]:
    """Summary of one group, times chance, and the hits of each subject."""
    keep = [n for n, s in enumerate(verdicts.shots) if subjects[s.subject].group == group]
    part = rows_of(verdicts, keep)
    report = summary(part, subjects)
    both = np.logical_and(
        identity_hits(part, subjects, MAIN_JUDGE), scene_hits(part, subjects)
    ).tolist()
    ratios = {
        judge: None if found is None else round(found["value"] / report["chance"], 3)
        for judge, found in report["identity"].items()
    }
    by_subject = {}
    for number in sorted({shot.subject for shot in part.shots}):
        own = [n for n, shot in enumerate(part.shots) if shot.subject == number]
        hits = identity_hits(rows_of(part, own), subjects, MAIN_JUDGE)
        by_subject[subjects[number].key] = round(float(np.mean(hits)), 4)
    return report | {
        "times_chance": ratios,
        "identity_and_scene": rate_of(both, part),
        "by_subject": by_subject,
    }


def combination_summary(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
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
        "held_out": summary(rows_of(verdicts, held), subjects),
        "other_prompts_of_the_same_subjects": summary(rows_of(verdicts, others), subjects),
    }


def wrong_reference_summary(verdicts: Verdicts, subjects: Sequence[EvalSubject]) -> dict[str, Any]:
    """Own: hits of the identity that was not given. Given: hits of the reference that was."""
    given = {}
    for judge, chosen in verdicts.chosen.items():
        pairs = zip(verdicts.shots, chosen, strict=True)
        hits = [style == subjects[shot.subject].wrong for shot, style in pairs]
        given[judge] = rate_of(hits, verdicts)
    return summary(verdicts, subjects) | {"identity_of_the_given_reference": given}


def reference_curve(
    arms: dict[str, Verdicts], subjects: Sequence[EvalSubject], config: SuiteConfig
) -> dict[str, Any]:
    """The same subjects, prompts and noise with more and more references."""
    places = {place_of(shot) for shot in count_shots(subjects, config, 1)}
    curve = {"1": summary(subset(arms["main"], places), subjects)}
    for count in config.counts:
        if count > 1:
            curve[str(count)] = summary(arms[f"references_{count}"], subjects)
    return curve


def judge_accuracy(
    arms: dict[str, Verdicts],
    judges: Sequence[IdentityJudge],
    scene_accuracy: float,
    subjects: Sequence[EvalSubject],
) -> dict[str, Any]:
    """How often each judge is right on the renderer's own pictures: its ceiling."""
    drawn = {name: arms[name] for name in ("renderer", "renderer_blurred")}
    report: dict[str, Any] = {}
    for judge in judges:
        hits = {name: identity_hits(arm, subjects, judge.name) for name, arm in drawn.items()}
        report[judge.name] = {"about": judge.about}
        report[judge.name] |= {name: rate_of(hits[name], arm) for name, arm in drawn.items()}
    report["scene"] = {
        "about": "small network over the scenes, taught with renders of training drawings",
        "fresh_renders": round(scene_accuracy, 4),
        **{name: rate_of(scene_hits(arm, subjects), arm) for name, arm in drawn.items()},
    }
    return report
