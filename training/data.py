"""Batches for the U-Nets: latents with what is dropped, and which references each row reads.

Knows latents, token ids and dropout; knows nothing about models or losses. References come from a
source: the cache, or pictures that are augmented and encoded for each batch, so that every epoch
sees them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bootpig_rt.checks import check_prompt
from bootpig_rt.errors import ConfigError
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.augment import augment
from bootpig_rt.training.config import Augmentation, DiffusionConfig, TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.latents import Latents, encode, load_latents
from bootpig_rt.training.pictures import load_pictures

VALIDATION_SAMPLES = 16


References = Callable[[Sequence[int], Sequence[np.random.Generator]], Tensor]
"""Rows of the reference table, and a random stream for each -> latents [n, C, h, w] on the CPU."""


def cached_references(latents: Latents) -> References:
    """References as they were encoded once."""
    return lambda rows, rngs: latents.references[list(rows)]


def augmented_references(
    pictures: NDArray[np.uint8], vae: Any, augmentation: Augmentation, device: torch.device
) -> References:
    """References, uint8 [M, S, S, 3] on white, that are changed and encoded anew each time.

    Encoding costs about a sixth of a training step at 64 px and a tenth at 512. A cache of one draw
    an epoch would cost the same encodings, and the disk besides.
    """

    def references(rows: Sequence[int], rngs: Sequence[np.random.Generator]) -> Tensor:
        drawn = [
            augment(rng, pictures[row], augmentation) for row, rng in zip(rows, rngs, strict=True)
        ]
        with torch.autocast(device.type, enabled=False):  # the numbers that a cache would hold
            return encode(vae, np.stack(drawn), device)

    return references


@dataclass(frozen=True)
class Batch:
    """One batch on the device; the first `kept` rows have references, `ref_of_row` [kept, R].

    `order` are the rows' places in the indices that were asked for; `owner` the row of each
    reference.
    """

    latents: Tensor
    masks: Tensor
    ids: Tensor
    kept: int
    reference_latents: Tensor
    reference_ids: Tensor
    ref_of_row: Tensor
    order: list[int]
    owner: list[int]


class DiffusionData:
    """Samples of a data set as the U-Nets see them, and a few held-out ones.

    `dropout` says how often prompts and references are left out, and how many are read.
    """

    def __init__(
        self,
        train: Latents,
        references: References,
        validation: Latents | None,
        tokenizer: Tokenizer,
        dropout: DiffusionConfig,
        device: torch.device,
    ) -> None:
        self.train, self.references, self.validation = train, references, validation
        self.tokenizer, self.dropout, self.device = tokenizer, dropout, device
        self.num_samples = len(train.targets)
        self.caption_ids = self.ids(train.captions)
        self.reference_ids = self.ids(train.reference_prompts)
        self.empty_ids = self.ids([""])

    def ids(self, texts: list[str]) -> Tensor:
        """Tokenise texts to int64 [N, S]."""
        checked = [check_prompt(text, "caption", allow_empty=True) for text in texts]
        return torch.from_numpy(self.tokenizer(checked))

    def batch(self, indices: Tensor, draws: Draws) -> Batch:
        """Gather samples, drop prompts and references, choose which references are read."""
        settings, train = self.dropout, self.train
        both, reference, prompt = draws.uniform(3).unbind(1)
        drop_both = both < settings.both_dropout
        drop_reference = (reference < settings.reference_dropout) | drop_both
        drop_prompt = (prompt < settings.prompt_dropout) | drop_both
        # Rows with a reference come first, so that attention works on two plain blocks.
        order = torch.argsort(drop_reference.long(), stable=True)
        indices, drop_prompt = indices[order], drop_prompt[order]
        kept = int((~drop_reference).sum())
        ids = self.caption_ids[indices].clone()
        ids[drop_prompt] = self.empty_ids
        rows, ref_of_row = self._choose(indices[:kept], draws.part(order.tolist()))
        owner = torch.arange(kept).repeat_interleave((ref_of_row >= 0).sum(1))
        rngs = [draws.rng(int(order[row])) for row in owner]
        found = self.references(rows, rngs) if rows else train.targets[:0]
        device = self.device
        return Batch(
            latents=train.targets[indices].float().to(device),
            masks=train.masks[indices].float().to(device) / 255.0,
            ids=ids.to(device),
            kept=kept,
            reference_latents=found.float().to(device),
            reference_ids=self.reference_ids[indices[owner]].to(device),
            ref_of_row=ref_of_row,
            order=order.tolist(),
            owner=owner.tolist(),
        )

    def _choose(self, indices: Tensor, draws: Draws) -> tuple[list[int], Tensor]:
        """Rows of the reference table [n], and which of them each sample reads [kept, R]."""
        most = self.dropout.max_references
        rows: list[int] = []
        table = torch.full((len(indices), most), -1, dtype=torch.long)
        for place, index in enumerate(indices.tolist()):
            first, last = self.train.first_reference[index : index + 2].tolist()
            for slot, k in enumerate(draws.order(place, last - first)[:most]):
                table[place, slot] = len(rows)
                rows.append(first + k)
        return rows, table


def open_data(
    config: TrainConfig,
    vae: Any,
    tokenizer: Tokenizer,
    device: torch.device,
    *,
    size_px: int | None = None,
) -> DiffusionData:
    """Read or make the latents that a configuration names.

    Args:
        config: Names data, number of samples and augmentation; the cache stands beside its output.
        vae: Frozen.
        tokenizer: Of the text encoder.
        device: Where the VAE is and batches go.
        size_px: Side of the pictures that the start was made for; None takes any.

    Raises:
        InputError: A folder has no samples.
        ConfigError: The pictures are of another size.
        StorageError: The cache cannot be written.
    """
    cache, augmentation = Path(config.output).parent / "latents", config.diffusion.augmentation
    folder = Path(config.data)
    train = load_latents(
        folder,
        vae,
        cache,
        with_references=augmentation == "none",
        max_samples=config.max_samples,
        device=device,
    )
    side = train.size_px
    if size_px is not None and side != size_px:
        raise ConfigError(
            f"{folder} has pictures of {side} px, but {config.start_from} was made for {size_px}; "
            f"make others with `bootpig-rt synthesize --size-px {size_px}`"
        )
    references = cached_references(train)
    if augmentation != "none":
        pictures = load_pictures(folder, max_samples=config.max_samples).references
        references = augmented_references(pictures, vae, augmentation, device)
    validation = None
    if config.validation_data:
        validation = load_latents(
            Path(config.validation_data),
            vae,
            cache,
            max_samples=VALIDATION_SAMPLES,
            device=device,
        )
    return DiffusionData(train, references, validation, tokenizer, config.diffusion, device)
