"""From a configuration to its data: shards opened, sizes chosen, what is kept of them made."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import Pair
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.buckets import Sizing, check_sizes
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.latents import read_latents, store_latents, vae_factor
from bootpig_rt.training.references import AugmentedReferences, References, StoredReferences
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.text_states import store_texts

logger = logging.getLogger(__name__)

VALIDATION_SAMPLES = 16


def open_data(
    config: TrainConfig,
    vae: Any,
    tokenizer: Tokenizer,
    device: torch.device,
    *,
    latent_multiple: int,
    start: Pair | None = None,
) -> DiffusionData:
    """Open the data set that a configuration names, and make what is kept of it on the disk.

    All processes do this at once, and share the work.

    Args:
        config: Names data, number and sizes of samples, and augmentation; what is kept stands
            beside its output.
        vae: Frozen.
        tokenizer: Of the text encoder.
        device: Where the VAE is and batches go.
        latent_multiple: What sides of latents must be multiples of.
        start: The pair that is trained; None where sizes are those of the data.

    Raises:
        InputError: A folder has no samples, or a shard is damaged or was changed.
        ConfigError: Pictures are of another size, or a bucket is one that the model cannot take.
        StorageError: What is kept cannot be written.
    """
    cache, augmentation = cache_folder(config), config.diffusion.augmentation
    samples = open_samples(config)
    sizing = _sizing(config, samples, vae_factor(vae) * latent_multiple, start)
    train = store_latents(
        samples, sizing, vae, cache, device=device, with_references=augmentation == "none"
    )
    references: References = StoredReferences(train)
    if augmentation != "none":
        side = sizing.reference_px
        references = AugmentedReferences(samples, side, vae, augmentation, device)
    texts = None
    if start is not None and config.samples.text_states == "stored":
        texts = store_texts(
            samples,
            tokenizer,
            start.text_encoder,
            cache,
            tokenizer_folders=[start.tokenizer_folder, start.tokenizer_2_folder],
            device=device,
        )
    validation = None
    held_out = open_validation(config, VALIDATION_SAMPLES)
    if held_out is not None:
        validation = read_latents(held_out, sizing, vae, device=device)
    return DiffusionData(train, references, validation, tokenizer, config, device, texts=texts)


def cache_folder(config: TrainConfig) -> Path:
    """Where indices, latents and text states are kept: beside the outputs of the stages."""
    return Path(config.output).parent / "latents"


def open_samples(config: TrainConfig) -> Samples:
    """The samples that a configuration trains on.

    Raises:
        InputError, ConfigError, StorageError: As for `Samples`.
    """
    return Samples(Path(config.data), cache_folder(config), max_samples=config.max_samples)


def open_validation(config: TrainConfig, max_samples: int) -> Samples | None:
    """The first samples that a configuration is validated on, None where there are none.

    Raises:
        InputError, ConfigError, StorageError: As for `Samples`.
    """
    if not config.validation_data:
        return None
    folder = Path(config.validation_data)
    return Samples(folder, cache_folder(config), max_samples=max_samples)


def _sizing(config: TrainConfig, samples: Samples, multiple: int, start: Pair | None) -> Sizing:
    """The sizes that are trained at, told in the log with how many pictures are fitted to them."""
    buckets = config.samples.buckets
    if buckets:
        squares = [width for width, height in buckets if width == height]
        area = math.sqrt(buckets[0][0] * buckets[0][1])
        side = squares[0] if squares else max(1, round(area / multiple)) * multiple
        name = "samples.buckets"
    else:
        side = int(samples.sizes_px[0, 0])
        name = f"{samples.folder}"
    if start is not None:
        side = start.config.sample_size_px
    sizing = Sizing(buckets or ((side, side),), side)
    counts, resized, enlarged = sizing.count(samples.sizes_px)
    if resized and not buckets:
        raise _of_another_size(config, samples, side, start)
    check_sizes(sizing.buckets, multiple, name)
    found = ", ".join(
        f"{count} at {width} x {height}"
        for (width, height), count in zip(sizing.buckets, counts, strict=True)
    )
    references = (samples.reference_sizes_px != side).any(1)
    logger.info(
        "%d samples of %s: %s px; %d are resized or cut, %d of them enlarged; %d of %d references "
        "are resized to %d px",
        *(len(samples), samples.folder, found, resized, enlarged),
        *(int(references.sum()), len(references), side),
    )
    return sizing


def _of_another_size(
    config: TrainConfig, samples: Samples, side: int, start: Pair | None
) -> ConfigError:
    sample = int(np.flatnonzero((samples.sizes_px != side).any(1))[0])
    width, height = samples.sizes_px[sample].tolist()
    size = f"{width}" if width == height else f"{width} x {height}"
    made = f"{config.start_from} was made for {side}" if start else f"its first is of {side}"
    return ConfigError(
        f"{samples.folder} has pictures of {size} px, sample {sample} for one, but {made}; make "
        f"others with `bootpig-rt synthesize --size-px {side}`, or have them fitted with "
        f"samples.buckets=[[{side}, {side}]]"
    )
