"""Measures a folder of drawn pictures, and the photographs, with every encoder that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bootpig_rt.images.image_input import load_image
from bootpig_rt.training.evaluation.dreambench.copies import PERCENTILE, PasteJudge
from bootpig_rt.training.evaluation.dreambench.cutting import KeptMasks
from bootpig_rt.training.evaluation.dreambench.data import BenchSubject, DreamBench
from bootpig_rt.training.evaluation.dreambench.drawing import reference_photographs
from bootpig_rt.training.evaluation.dreambench.encoders import (
    ClipEncoder,
    DinoEncoder,
    DinoView,
    ImageEncoder,
)
from bootpig_rt.training.evaluation.dreambench.features import FeatureStore, Way
from bootpig_rt.training.evaluation.dreambench.oracle import OracleCheck, check_oracle
from bootpig_rt.training.evaluation.dreambench.scores import (
    Controls,
    Doubles,
    Floats,
    controls,
    identity_scores,
    mean_over_subjects,
    text_scores,
)
from bootpig_rt.training.evaluation.dreambench.settings import DrawSettings
from bootpig_rt.training.evaluation.dreambench.shots import all_shots, picture_path

COLUMN_OF_ENCODER = {"dino": "dino", "clip": "clip_i", "efficientnet": "efficientnet"}


@dataclass(frozen=True)
class Metric:
    """One column: for each subject a value of each of its pictures, in the order of the shots.

    `name` is `dino`, `clip_i`, `clip_t`, `efficientnet`, `masked_dino` and so on, or `paste`.
    """

    name: str
    values: tuple[Doubles, ...]


@dataclass(frozen=True)
class ColumnControls:
    """What photographs score in a column; of `clip_t` only a copy has a score."""

    name: str
    controls: Controls | None
    copy: float


@dataclass(frozen=True)
class Copying:
    """The copy-paste scores of photographs that were not given, and the limit that they set.

    Attributes:
        photographs: Mean score.
        limit: Their 95th percentile.
        over_limit: For each subject 1 for a picture above it, else 0.
    """

    photographs: float
    limit: float
    over_limit: Metric


@dataclass(frozen=True)
class Photographs:
    """What the photographs alone say: the rows beside the table, and whether they are right."""

    controls: tuple[ColumnControls, ...]
    oracle: tuple[OracleCheck, ...]


@dataclass(frozen=True)
class Measured:
    """All numbers of a run.

    Attributes:
        metrics: Columns.
        photographs: Rows beside them.
        copying: None where there is nothing to compare with.
        num_unmasked: Pictures and photographs in which no subject was found; None without masks.
    """

    metrics: tuple[Metric, ...]
    photographs: Photographs
    copying: Copying | None
    num_unmasked: int | None


@dataclass(frozen=True)
class Judges:
    """Who measures.

    Attributes:
        encoders: One or more.
        masks: Cut subjects out, for copy-paste scores and masked columns; None takes all whole.
        is_masked: Whether there are masked columns; needs `masks`.
    """

    encoders: tuple[ImageEncoder, ...]
    masks: KeptMasks | None = None
    is_masked: bool = False

    @property
    def clip(self) -> ClipEncoder | None:
        """The one that reads prompts."""
        return next((each for each in self.encoders if isinstance(each, ClipEncoder)), None)

    @property
    def ways(self) -> tuple[Way, ...]:
        """All columns of identity."""
        plain = [
            Way(COLUMN_OF_ENCODER[each.about.name], each.about.fingerprint, each.images)
            for each in self.encoders
        ]
        if self.masks is None or not self.is_masked:
            return tuple(plain)
        of = self.masks.cutter.fingerprint
        masked = [
            Way(
                f"masked_{way.name}",
                f"{way.fingerprint} on white {of}",
                way.measure,
                self.masks.on_white,
            )
            for way in plain
        ]
        return (*plain, *masked)


def measure_photographs(bench: DreamBench, judges: Judges, store: FeatureStore) -> Photographs:
    """Score photographs in place of pictures, and check the oracle row.

    Raises:
        ImageError: A photograph cannot be read.
    """
    nouns = [subject.noun for subject in bench.subjects]
    rows, checks = [], []
    for way in judges.ways:
        features = _of_photographs(bench, way, store)
        found = controls(features, nouns)
        rows.append(ColumnControls(way.name, found, found.copy))
        if way.name == "clip_i" and judges.clip is not None:
            rows.append(ColumnControls("clip_t", None, _copied_text(bench, judges.clip, features)))
    for encoder in judges.encoders:
        checks += check_oracle(bench, encoder, _features_by_view(bench, encoder, store))
    return Photographs(tuple(rows), tuple(checks))


def measure_pictures(
    bench: DreamBench,
    folder: Path,
    settings: DrawSettings,
    judges: Judges,
    store: FeatureStore,
) -> Measured:
    """Score a whole set of drawn pictures.

    Raises:
        ImageError: A picture or a photograph cannot be read.
    """
    files = _files(bench, folder, settings.per_prompt)
    photographs = measure_photographs(bench, judges, store)
    metrics: list[Metric] = []
    for way in judges.ways:
        drawn = [store(way, own) for own in files]
        real = _of_photographs(bench, way, store)
        values = [identity_scores(*each) for each in zip(drawn, real, strict=True)]
        metrics.append(Metric(way.name, tuple(values)))
        if way.name == "clip_i" and judges.clip is not None:
            texts = [
                np.repeat(_texts(judges.clip, subject), settings.per_prompt, axis=0)
                for subject in bench.subjects
            ]
            scores = [text_scores(*each) for each in zip(drawn, texts, strict=True)]
            metrics.append(Metric("clip_t", tuple(scores)))
    pasted, copying = _copying(bench, files, settings, judges.masks, store)
    return Measured(
        (*metrics, pasted),
        photographs,
        copying,
        None if judges.masks is None else judges.masks.num_whole,
    )


def _files(bench: DreamBench, folder: Path, per_prompt: int) -> list[list[Path]]:
    """Files of each subject's pictures, in the order of the shots."""
    files: list[list[Path]] = [[] for _ in bench.subjects]
    for shot in all_shots(bench, per_prompt):
        files[shot.subject].append(picture_path(folder, bench, shot))
    return files


def _of_photographs(bench: DreamBench, way: Way, store: FeatureStore) -> list[Floats]:
    return [store(way, subject.photographs) for subject in bench.subjects]


def _texts(clip: ClipEncoder, subject: BenchSubject) -> Floats:
    return clip.texts([prompt.text for prompt in subject.prompts])


def _copied_text(bench: DreamBench, clip: ClipEncoder, photographs: Sequence[Floats]) -> float:
    """CLIP-T of photographs in place of pictures: what never following a prompt scores."""
    return mean_over_subjects(
        [
            identity_scores(own, _texts(clip, subject))
            for own, subject in zip(photographs, bench.subjects, strict=True)
        ]
    )


def _features_by_view(
    bench: DreamBench, encoder: ImageEncoder, store: FeatureStore
) -> list[tuple[str, list[Floats]]]:
    """Features as the encoder sees photographs, and as it might see them."""
    seen: list[tuple[str, ImageEncoder]] = [("", encoder)]
    if isinstance(encoder, DinoEncoder):
        views: tuple[tuple[DinoView, str], ...] = (
            ("crop", "with --dino-view crop"),
            ("whole", "with --dino-view whole"),
        )
        others = [(words, encoder.seen_as(view)) for view, words in views]
        seen += [each for each in others if each[1].about.fingerprint != encoder.about.fingerprint]
    found = []
    for words, each in seen:
        way = Way(COLUMN_OF_ENCODER[each.about.name], each.about.fingerprint, each.images)
        found.append((words, _of_photographs(bench, way, store)))
    return found


def _copying(
    bench: DreamBench,
    files: Sequence[Sequence[Path]],
    settings: DrawSettings,
    masks: KeptMasks | None,
    store: FeatureStore,
) -> tuple[Metric, Copying | None]:
    pasted: list[Doubles] = []
    of_photographs: list[float] = []
    for subject, own in zip(bench.subjects, files, strict=True):
        given = reference_photographs(subject, settings.references, settings.max_references)
        opened = [
            (path, load_image(path, what="photograph").convert("RGB"))
            for path in subject.photographs
        ]
        references = [
            image.convert("RGBA") if masks is None else masks.cut_out(path, image)
            for path, image in opened[: len(given)]
        ]
        judge = PasteJudge(tuple(references))
        pasted.append(store(judge.way, own).astype(np.float64))
        of_photographs += judge.of_photographs([image for _, image in opened])
    metric = Metric("paste", tuple(pasted))
    if not of_photographs:
        return metric, None
    limit = float(np.percentile(of_photographs, PERCENTILE))
    over = tuple((each > limit).astype(np.float64) for each in pasted)
    mean = float(np.mean(of_photographs))
    return metric, Copying(mean, limit, Metric("over_limit", over))
