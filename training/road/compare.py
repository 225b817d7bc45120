"""Does a trained pair personalise better than what it started from? Both draw the same, paired.

Subjects, prompts, references and noise are those of `training/evaluation`, and the same for both,
so that every figure is a mean over subjects of differences between two pictures that differ in the
pair alone. Two controls say what a figure is worth: the same picture with the reference of another
style of its concept, and the renderer's own picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.images.png import save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.evaluation.alignment import AlignmentJudge
from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
from bootpig_rt.training.evaluation.fidelity import FidelityJudge
from bootpig_rt.training.evaluation.generators import PipelineGenerator, draw_shots, suite_digest
from bootpig_rt.training.evaluation.render import RendererGenerator
from bootpig_rt.training.evaluation.sheets import Tile, sheet
from bootpig_rt.training.evaluation.statistics import rate, rounded
from bootpig_rt.training.evaluation.suite import (
    EvalSubject,
    Shot,
    SuiteConfig,
    choose_subjects,
    control_shots,
    reference_pictures,
)
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites

Measured = dict[str, list[float]]
OnProgress = Callable[[int], None]
MEASURES = {
    "psnr_db": "subject's pixels, PSNR in dB",
    "perceptual": "perceptual distance, lower is better",
    "identity": "its own style named, of all styles of its concept",
}
SHEET_ROWS = 8


@dataclass(frozen=True)
class Comparison:
    """What is drawn.

    Attributes:
        subjects: Held-out drawings.
        prompts: Of each, one picture a prompt.
        steps: Of the solver.
        reference_schedule, image_guidance_scale, text_guidance_scale: The same for both pairs.
        batch: Pictures at once.
    """

    subjects: int
    prompts: int
    steps: int
    reference_schedule: str
    image_guidance_scale: float
    text_guidance_scale: float
    batch: int = 8


def compare(
    start: Path,
    pair: Path,
    data: Path,
    output: Path,
    settings: Comparison,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Draw with both, judge, and write `compare.png` into a folder; pictures are kept there.

    Returns:
        For each of `MEASURES` rates with 95 % intervals over subjects: of `start` and `pair`, with
        their own reference and a wrong one, of the `renderer`; and the differences `gain`, pair
        less start, `reference`, own less wrong of the pair, and `better`, that less the same of
        the start: what personalisation was gained, whatever else training did to the pictures.
        `chance` is that of identity.

    Raises:
        BackendUnavailable: The weights of the network that judges are not installed.
        CheckpointError: A folder is no pair.
        ConfigError: The data has too few held-out drawings.
        StorageError: `data` has no drawings, or the output cannot be written.
    """
    config = SuiteConfig(
        name="compare",
        identities=settings.subjects,
        concepts=0,
        prompts=settings.prompts,
        seeds=1,
        control_prompts=settings.prompts,
    )
    subjects = choose_subjects(load_sprites(data), load_splits(), config)
    own = control_shots(subjects, config, "own")
    arms = {"own": own, "wrong": control_shots(subjects, config, "wrong")}
    judge = _Judge(subjects, config)
    digest = suite_digest(subjects, config)
    measured: dict[str, Measured] = {}
    pictures: dict[str, NDArray[np.uint8]] = {}
    for name, folder in (("start", start), ("pair", pair)):
        request = Request(
            prompt="any",
            num_inference_steps=settings.steps,
            reference_schedule=settings.reference_schedule,
            image_guidance_scale=settings.image_guidance_scale,
            text_guidance_scale=settings.text_guidance_scale,
        )
        with Pipeline(folder, max_batch=settings.batch) as pipeline:
            drawer = PipelineGenerator(pipeline, subjects, config, settings=request)
            for arm, shots in arms.items():
                drawn = draw_shots(
                    drawer,
                    shots,
                    suite_digest=digest,
                    folder=output / "pictures",
                    resume=True,
                    on_progress=on_progress,
                )
                pictures[f"{name}_{arm}"], measured[f"{name}_{arm}"] = drawn, judge(shots, drawn)
            size_px = pipeline.spec.config.sample_size_px
    rendered = RendererGenerator(subjects, config, size_px=size_px)(own)
    measured["renderer_own"] = judge(own, rendered)
    _save_sheet(subjects, own, pictures, config, output / "compare.png")
    return _summary(measured, subjects, own)


class _Judge:
    """All measures of pictures, from judges that have seen neither pair."""

    def __init__(self, subjects: Sequence[EvalSubject], config: SuiteConfig) -> None:
        self._subjects = subjects
        self._identity = AlignmentJudge(subjects, config)
        self._fidelity = FidelityJudge(subjects, config, load_efficientnet())

    def __call__(self, shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> Measured:
        scores = self._identity.scores(shots, pictures)
        hits = [
            float(row.argmax() == self._subjects[shot.subject].own)
            for shot, row in zip(shots, scores, strict=True)
        ]
        return {**self._fidelity(shots, pictures), "identity": hits}


def _summary(
    measured: dict[str, Measured], subjects: Sequence[EvalSubject], shots: Sequence[Shot]
) -> dict[str, Any]:
    whose = [shot.subject for shot in shots]
    report: dict[str, Any] = {
        "subjects": [subject.key for subject in subjects],
        "chance": round(float(np.mean([1 / len(s.styles) for s in subjects])), 4),
    }
    for name in MEASURES:
        found = {arm: np.array(values[name]) for arm, values in measured.items()}
        found["gain"] = found["pair_own"] - found["start_own"]
        found["reference"] = found["pair_own"] - found["pair_wrong"]
        found["better"] = found["reference"] - (found["start_own"] - found["start_wrong"])
        report[name] = {arm: rounded(rate(values.tolist(), whose)) for arm, values in found.items()}
    return report


def _save_sheet(
    subjects: Sequence[EvalSubject],
    shots: Sequence[Shot],
    pictures: dict[str, NDArray[np.uint8]],
    config: SuiteConfig,
    path: Path,
) -> None:
    """A row for each of the first subjects: reference, start, trained, trained on a wrong one."""
    rows = []
    for number, subject in enumerate(subjects[:SHEET_ROWS]):
        first = next(n for n, shot in enumerate(shots) if shot.subject == number)
        words = subject.prompts[shots[first].prompt].scene
        reference = reference_pictures(subject, subject.own, 1, config.seed)[0]
        wrong = reference_pictures(subject, subject.wrong, 1, config.seed)[0]
        rows.append(
            [
                Tile(reference, subject.noun),
                Tile(pictures["start_own"][first], f"start: {words}"),
                Tile(pictures["pair_own"][first], f"trained: {words}"),
                Tile(wrong, "wrong reference"),
                Tile(pictures["pair_wrong"][first], f"trained: {words}"),
            ]
        )
    save_png(sheet(rows), path, {})


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the report for people: a heading, then one row for each measure."""
    arms = {
        "start_own": "start",
        "pair_own": "trained",
        "gain": "trained less start",
        "pair_wrong": "trained, wrong reference",
        "reference": "trained, own less wrong reference",
        "better": "that, less the same of the start",
        "renderer_own": "renderer",
    }
    rows: list[tuple[str, ...]] = [("", *arms.values())]
    for name, about in MEASURES.items():
        cells = []
        for arm in arms:
            part = report[name][arm]
            cells.append(f"{part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})")
        rows.append((about, *cells))
    return rows
