"""The small world in shards: samples drawn from sprites and scenes, deterministic and resumable.

A sample is a function of (seed, index), whatever the number of workers and however often the
command was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.compose import Sample, WorldConfig, draw_sample
from bootpig_rt.training.folder_claim import only_writer
from bootpig_rt.training.shards import (
    EncodedSample,
    StoredSample,
    claim_settings,
    kept_record,
    write_manifest,
    write_shard,
)
from bootpig_rt.training.workers import spread

T = TypeVar("T")

MAX_TRIES = 64
MIN_SIZE_PX, MAX_SIZE_PX = 8, 1024


@dataclass(frozen=True)
class Subjects:
    """The drawings that samples are made of.

    `sprites` is uint8 [N, P, P, 4]; `nouns`, `concepts` and `styles` have N entries;
    `held_out_scenes` maps a concept to scenes it must not be seen in.
    """

    sprites: NDArray[np.uint8]
    nouns: list[str]
    concepts: list[str]
    styles: list[str]
    held_out_scenes: dict[str, frozenset[str]]


@dataclass(frozen=True)
class SynthesisConfig:
    """What to make: `num_samples` samples of `seed`, in shards of `shard_size`."""

    num_samples: int
    seed: int = 0
    shard_size: int = 2000
    world: WorldConfig = field(default_factory=WorldConfig)


def sample_at(
    index: int, subjects: Subjects, config: SynthesisConfig
) -> tuple[Sample, int, Counter[str]]:
    """Draw sample `index`: the first draw that is not rejected.

    Returns:
        The sample, the subject's row, and how many draws were rejected for which reason.
    """

    def draw(rng: np.random.Generator) -> tuple[Sample, int] | str:
        row = int(rng.integers(len(subjects.nouns)))
        result = draw_sample(
            rng,
            subjects.sprites[row],
            subjects.nouns[row],
            config.world,
            subjects.held_out_scenes.get(subjects.concepts[row], frozenset()),
        )
        return (result, row) if isinstance(result, Sample) else result

    (sample, row), rejects = first_taken(config.seed, index, draw)
    return sample, row, rejects


def first_taken(
    seed: int, index: int, draw: Callable[[np.random.Generator], T | str]
) -> tuple[T, Counter[str]]:
    """Draw until a draw is taken: the sample of an index, and how often each reason rejected one.

    Raises:
        ConfigError: Too many draws were rejected.
    """
    rejects: Counter[str] = Counter()
    for attempt in range(MAX_TRIES):
        result = draw(np.random.default_rng((seed, index, attempt)))
        if not isinstance(result, str):
            return result, rejects
        rejects[result] += 1
    raise ConfigError(
        f"sample {index}: {MAX_TRIES} draws were all rejected ({dict(rejects)}); "
        "expected most draws to pass; check the subjects and the world's settings"
    )


DrawSample = Callable[[int], tuple[StoredSample | EncodedSample, Counter[str]]]
"""From an index to its sample, and how many draws were rejected for which reason."""


@dataclass(frozen=True)
class ShardPlan:
    """How many samples go where: `num_samples` in shards of `shard_size`."""

    folder: Path
    num_samples: int
    shard_size: int


def write_drawn_shard(number: int, plan: ShardPlan, draw: DrawSample) -> dict[str, Any]:
    """Draw one shard and write it with its record; a shard that already has its record is kept.

    Returns:
        The record: file, first index, number of samples, bytes, sha256, rejects by reason.
    """
    if kept := kept_record(plan.folder, number):
        return kept
    first = number * plan.shard_size
    count = min(plan.shard_size, plan.num_samples - first)
    rejects: Counter[str] = Counter()

    def samples() -> Iterator[StoredSample | EncodedSample]:
        for index in range(first, first + count):
            sample, rejected = draw(index)
            rejects.update(rejected)
            yield sample

    return write_shard(plan.folder, number, samples(), first=first, rejects=rejects)


def write_drawn(
    plan: ShardPlan,
    draw: DrawSample,
    settings: dict[str, Any],
    *,
    num_workers: int = 1,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write all shards of a plan and return the manifest; a second call goes on.

    Args:
        plan: Where, and how many.
        draw: Travels to the worker processes.
        settings: All that decides what the samples are; others in the same folder are refused.
        num_workers: Processes.
        on_shard: Told of each shard's record.

    Raises:
        ConfigError: A number is out of range, or the folder holds samples of other settings.
        StorageError: The folder cannot be written, or another run writes it.
    """
    if plan.num_samples < 1 or plan.shard_size < 1 or num_workers < 1:
        raise ConfigError(
            f"num_samples, shard_size and num_workers must be at least 1, got "
            f"{plan.num_samples}, {plan.shard_size}, {num_workers}"
        )
    with only_writer(plan.folder):
        claim_settings(plan.folder, settings)
        records = []
        work = partial(write_drawn_shard, plan=plan, draw=draw)
        numbers = range(-(-plan.num_samples // plan.shard_size))
        for record in spread(work, numbers, num_workers):
            records.append(record)
            if on_shard:
                on_shard(record)
        return write_manifest(plan.folder, records, settings)


def _stored_at(
    index: int, subjects: Subjects, config: SynthesisConfig
) -> tuple[StoredSample, Counter[str]]:
    sample, row, rejects = sample_at(index, subjects, config)
    return _to_store(index, sample, subjects, row), rejects


def _to_store(index: int, sample: Sample, subjects: Subjects, row: int) -> StoredSample:
    record = {
        "scene": sample.caption.scene,
        "position": sample.caption.position,
        "concept": subjects.concepts[row],
        "style": subjects.styles[row],
        "hue_deg": round(sample.hue_deg, 1),
        "is_same_view": sample.is_same_view,
    }
    return StoredSample(
        index,
        sample.target,
        sample.mask,
        list(sample.references),
        sample.caption.text,
        sample.caption.reference_prompt,
        record,
    )


def synthesize(
    folder: Path,
    subjects: Subjects,
    config: SynthesisConfig,
    *,
    num_workers: int = 1,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write all shards of a configuration into a folder and return the manifest.

    A second call with the same settings goes on where the first stopped; other settings in the
    same folder are refused.

    Raises:
        ConfigError: A number is out of range, or the folder holds samples of other settings.
        StorageError: The folder cannot be written, or another run writes it.
    """
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}, expected 0 or more")
    if not MIN_SIZE_PX <= config.world.size_px <= MAX_SIZE_PX:
        raise ConfigError(
            f"size_px is {config.world.size_px}, expected {MIN_SIZE_PX} to {MAX_SIZE_PX}"
        )
    settings = json.loads(json.dumps(asdict(config))) | {"subjects": _subjects_digest(subjects)}
    plan = ShardPlan(folder, config.num_samples, config.shard_size)
    draw = partial(_stored_at, subjects=subjects, config=config)
    return write_drawn(plan, draw, settings, num_workers=num_workers, on_shard=on_shard)


def _subjects_digest(subjects: Subjects) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(subjects.sprites).tobytes())
    held_out = {k: sorted(v) for k, v in sorted(subjects.held_out_scenes.items())}
    names = [subjects.nouns, subjects.concepts, subjects.styles, held_out]
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()
