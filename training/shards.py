"""Shards of samples: tar files of PNG and JSON with a manifest, deterministic and resumable.

A sample is a function of (seed, index), whatever the number of workers and however often the
command was interrupted. A shard is written under a temporary name and renamed; its record (counts,
sha256) stands beside it; the manifest is written last and names every shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.files.atomic import atomic_write, atomic_write_text
from bootpig_rt.training.compose import Sample, WorldConfig, draw_sample
from bootpig_rt.training.workers import spread

FORMAT = 1
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


@dataclass(frozen=True)
class StoredSample:
    """One sample as read back from a shard."""

    index: int
    target: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    references: list[NDArray[np.uint8]]
    caption: str
    reference_prompt: str
    record: dict[str, Any]


def sample_at(
    index: int, subjects: Subjects, config: SynthesisConfig
) -> tuple[Sample, int, Counter[str]]:
    """Draw sample `index`: the first draw that is not rejected.

    Returns:
        The sample, the subject's row, and how many draws were rejected for which reason.
    """
    rejects: Counter[str] = Counter()
    for attempt in range(MAX_TRIES):
        rng = np.random.default_rng((config.seed, index, attempt))
        row = int(rng.integers(len(subjects.nouns)))
        result = draw_sample(
            rng,
            subjects.sprites[row],
            subjects.nouns[row],
            config.world,
            subjects.held_out_scenes.get(subjects.concepts[row], frozenset()),
        )
        if isinstance(result, Sample):
            return result, row, rejects
        rejects[result] += 1
    raise ConfigError(
        f"sample {index}: {MAX_TRIES} draws were all rejected ({dict(rejects)}); "
        "expected most draws to pass; check the sprites and the world's settings"
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tar"


def write_shard(
    folder: Path, number: int, subjects: Subjects, config: SynthesisConfig
) -> dict[str, Any]:
    """Write one shard and its record; a shard that already has its record is kept.

    Returns:
        The record: file, first index, number of samples, bytes, sha256, rejects by reason.
    """
    record_path = folder / f"shard-{number:05d}.json"
    path = folder / shard_name(number)
    if record_path.exists() and path.exists():
        kept: dict[str, Any] = json.loads(record_path.read_text())
        if kept["bytes"] == path.stat().st_size:
            return kept
    first = number * config.shard_size
    count = min(config.shard_size, config.num_samples - first)
    rejects: Counter[str] = Counter()
    with (
        atomic_write(path) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in range(first, first + count):
            sample, row, rejected = sample_at(index, subjects, config)
            rejects += rejected
            _add_sample(tar, index, sample, subjects, row)
    size_bytes, digest = measure(path)
    record = {
        "file": path.name,
        "first": first,
        "samples": count,
        "bytes": size_bytes,
        "sha256": digest,
        "rejects": dict(sorted(rejects.items())),
    }
    _write_json(record_path, record)
    return record


def _add_sample(
    tar: tarfile.TarFile, index: int, sample: Sample, subjects: Subjects, row: int
) -> None:
    key = f"{index:08d}"
    _add(tar, f"{key}.target.png", _png(sample.target))
    _add(tar, f"{key}.mask.png", _png(sample.mask))
    for k, reference in enumerate(sample.references):
        _add(tar, f"{key}.reference{k}.png", _png(reference))
    record = {
        "caption": sample.caption.text,
        "reference_prompt": sample.caption.reference_prompt,
        "scene": sample.caption.scene,
        "position": sample.caption.position,
        "concept": subjects.concepts[row],
        "style": subjects.styles[row],
        "hue_deg": round(sample.hue_deg, 1),
        "is_same_view": sample.is_same_view,
    }
    _add(tar, f"{key}.json", json.dumps(record).encode())


def _write_json(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=1) + "\n")


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
    """
    if config.num_samples < 1 or config.shard_size < 1 or num_workers < 1:
        raise ConfigError(
            f"num_samples, shard_size and num_workers must be at least 1, got "
            f"{config.num_samples}, {config.shard_size}, {num_workers}"
        )
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}, expected 0 or more")
    if not MIN_SIZE_PX <= config.world.size_px <= MAX_SIZE_PX:
        raise ConfigError(
            f"size_px is {config.world.size_px}, expected {MIN_SIZE_PX} to {MAX_SIZE_PX}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(asdict(config))) | {"subjects": _subjects_digest(subjects)}
    settings_path = folder / "settings.json"
    if settings_path.exists() and json.loads(settings_path.read_text()) != settings:
        raise ConfigError(
            f"{folder} holds samples of other settings; choose another folder, or delete it to "
            "start anew"
        )
    _write_json(settings_path, settings)
    records = []
    work = partial(write_shard, folder, subjects=subjects, config=config)
    numbers = range(-(-config.num_samples // config.shard_size))
    for record in spread(work, numbers, num_workers):
        records.append(record)
        if on_shard:
            on_shard(record)
    rejects: Counter[str] = Counter()
    for record in records:
        rejects.update(record["rejects"])
    manifest = {
        "format": FORMAT,
        "samples": config.num_samples,
        "settings": settings,
        "rejects": dict(sorted(rejects.items())),
        "shards": records,
    }
    _write_json(folder / "manifest.json", manifest)
    return manifest


def _subjects_digest(subjects: Subjects) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(subjects.sprites).tobytes())
    held_out = {k: sorted(v) for k, v in sorted(subjects.held_out_scenes.items())}
    names = [subjects.nouns, subjects.concepts, subjects.styles, held_out]
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of shards.

    Raises:
        InputError: There is none, or it is of another format.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(
            f"{folder} has no manifest.json; make samples with "
            f"`bootpig-rt synthesize -o {folder}`, or run it again if it was interrupted"
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {manifest.get('format')}, expected {FORMAT}; make it again"
        )
    return manifest


def read_samples(folder: Path) -> Iterator[StoredSample]:
    """Yield every sample of a folder in order of its index.

    Raises:
        InputError: The folder has no manifest, or a shard is missing or damaged.
    """
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        # A tar that was cut between two members reads like a shorter one.
        if path.exists() and path.stat().st_size != shard["bytes"]:
            raise _damaged(path, f"{path.stat().st_size} bytes, expected {shard['bytes']}")
        yield from read_shard(path)


def read_shard(path: Path) -> Iterator[StoredSample]:
    """Yield the samples of one shard.

    Raises:
        InputError: The shard is missing or damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            parts: dict[str, bytes] = {}
            for member in tar:
                key, _, part = member.name.partition(".")
                stream = tar.extractfile(member)
                if stream is None:
                    raise InputError(f"{path}: {member.name} is not a file; make the shard again")
                parts[part] = stream.read()
                if part == "json":  # the last part of a sample
                    yield _stored(int(key), parts)
                    parts = {}
            if parts:
                raise _damaged(path, "it ends within a sample")
    except (OSError, tarfile.TarError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read the shard {path} ({reason}); delete it and run `bootpig-rt synthesize` "
        "again with the same settings"
    )


def _stored(index: int, parts: dict[str, bytes]) -> StoredSample:
    def picture(part: str) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(parts[part])), dtype=np.uint8)

    record = json.loads(parts["json"])
    references = [picture(p) for p in sorted(parts) if p.startswith("reference")]
    return StoredSample(
        index,
        picture("target.png"),
        picture("mask.png"),
        references,
        record["caption"],
        record["reference_prompt"],
        record,
    )
