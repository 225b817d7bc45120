"""The 3-D world in shards: deterministic, resumable, in several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError
from bootpig_rt.training.render.context import make_context
from bootpig_rt.training.shards import EncodedSample, StoredSample, encode_png, encode_sample
from bootpig_rt.training.sprites import PIXELS_FILE
from bootpig_rt.training.synthesize import (
    ShardPlan,
    first_taken,
    write_drawn,
)
from bootpig_rt.training.world3d.catalogue import MODELS_FILE
from bootpig_rt.training.world3d.compose import WorldSample, draw_world_sample
from bootpig_rt.training.world3d.config import World3dConfig
from bootpig_rt.training.world3d.identities import Identities
from bootpig_rt.training.world3d.sources import SOURCES_FILE
from bootpig_rt.training.world3d.studio import studio_of

DEPTH_STEPS = 1000
"""Levels of a depth picture in a length of the subject."""


@dataclass(frozen=True)
class Synthesis3dConfig:
    """What to make: `num_samples` samples of `seed`, in shards of `shard_size`."""

    num_samples: int
    seed: int = 0
    shard_size: int = 250
    world: World3dConfig = field(default_factory=World3dConfig)


def synthesize_3d(
    folder: Path,
    identities: Identities,
    config: Synthesis3dConfig,
    *,
    num_workers: int = 1,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write all shards of a configuration into a folder and return the manifest.

    A second call with the same settings goes on where the first stopped; other settings in the
    same folder are refused.

    Raises:
        BackendUnavailable: moderngl or EGL is missing.
        ConfigError: A number is out of range, or the folder holds samples of other settings.
        InputError: A model is damaged.
        StorageError: The folder cannot be written, another run writes it, or a file is missing.
    """
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}, expected 0 or more")
    make_context()  # where it is missing, nothing is begun
    settings = {
        "num_samples": config.num_samples,
        "seed": config.seed,
        "shard_size": config.shard_size,
        "world": msgspec.json.decode(msgspec.json.encode(config.world)),
        "subjects": _record_of(identities),
    }
    plan = ShardPlan(folder, config.num_samples, config.shard_size)
    draw = partial(encoded_at, identities=identities, config=config)
    return write_drawn(plan, draw, settings, num_workers=num_workers, on_shard=on_shard)


def encoded_at(
    index: int, identities: Identities, config: Synthesis3dConfig
) -> tuple[EncodedSample, Counter[str]]:
    """Sample `index` as its members, and how many draws were rejected for which reason."""
    studio = studio_of(identities.folder, config.world.size_px)

    def draw(rng: np.random.Generator) -> WorldSample | str:
        return draw_world_sample(rng, identities, studio, config.world)

    sample, rejects = first_taken(config.seed, index, draw)
    stored = StoredSample(
        index,
        sample.rendering.picture,
        sample.rendering.mask,
        list(sample.references),
        sample.caption.text,
        sample.caption.reference_prompt,
        record_of(sample),
    )
    parts = encode_sample(stored)
    if config.world.keeps_depth:
        steps = np.clip(sample.rendering.depth * DEPTH_STEPS, 0, 65535).astype(np.uint16)
        # The text comes last, as in all shards.
        parts = {"depth.png": encode_png(steps), **parts}
    return EncodedSample(index, parts), rejects


def record_of(sample: WorldSample) -> dict[str, Any]:
    """What a sample's JSON says of it, besides its texts."""
    return {
        "scene": sample.caption.scene,
        "position": sample.caption.position,
        "size": sample.caption.size,
        "concept": sample.identity.concept,
        "style": sample.identity.key,
        "look": sample.look,
        "hue_deg": round(sample.hue_deg, 1),
        "view_deg": [round(sample.view.azimuth_deg, 1), round(sample.view.elevation_deg, 1)],
        "reference_views_deg": [
            [round(view.azimuth_deg, 1), round(view.elevation_deg, 1)]
            for view in sample.reference_views
        ],
    }


def _record_of(identities: Identities) -> dict[str, Any]:
    """What the samples depend on besides the settings."""
    files = [MODELS_FILE, SOURCES_FILE]
    if identities.drawings:
        files.append(identities.folder / PIXELS_FILE)
    return {
        "split": identities.split,
        "models": len(identities.models),
        "drawings": len(identities.drawings),
        "files": {path.name: measure(path)[1] for path in files},
    }
