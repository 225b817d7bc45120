"""A data set that lies on the device whole, for steps that all have the same shapes.

A GPU that draws small latents in milliseconds must not wait for a host that gathers them, nor for a
compiler that meets new shapes. So latents, masks and tokens are uploaded once, all chance of a step
is drawn on the device, and a row without a reference reads one that is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bootpig_rt.models.rows import RowPlan, bucketed_rows
from bootpig_rt.training.config import DiffusionConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.draws import Draws

_TOGETHER = 512
_MIX = 0x9E3779B97F4A7C15
"""An odd number whose multiples fill 64 bits evenly."""


@dataclass(frozen=True)
class ResidentBatch:
    """One batch; every row has one reference, which it reads where `reads` says so.

    `latents` and `references` float32 [B, C, h, w], `masks` float32 [B, h, w], `ids` and
    `reference_ids` int64 [B, S], `reads` bool [B].
    """

    latents: Tensor
    references: Tensor
    masks: Tensor
    ids: Tensor
    reference_ids: Tensor
    reads: Tensor

    def plan(self) -> RowPlan:
        """Rows as they are, each with one slot for its reference."""
        own = torch.arange(len(self.reads), device=self.reads.device, dtype=torch.int32)
        refs = torch.where(self.reads, own, -1)[:, None]
        return bucketed_rows(((1, len(self.reads)),), refs)


class ResidentData:
    """All samples that a stage trains on, on its device.

    Args:
        data: Its latents and texts are read once.
        settings: How often prompts and references are left out.
    """

    def __init__(self, data: DiffusionData, settings: DiffusionConfig) -> None:
        train, samples, device = data.train, data.samples, data.device
        self.device, self.settings = device, settings
        targets, masks, references, ids, reference_ids = [], [], [], [], []
        counts = [samples.num_references(n) for n in range(len(samples))]
        for first in range(0, len(samples), _TOGETHER):
            some = range(first, min(first + _TOGETHER, len(samples)))
            targets.append(train.targets(some).to(device))
            masks.append(train.masks(some).to(device))
            chosen = [(n, k) for n in some for k in range(counts[n])]
            references.append(train.references(chosen).to(device))
            texts = [samples.texts(n) for n in some]
            ids.append(data.ids([caption for caption, _ in texts]))
            reference_ids.append(data.ids([prompt for _, prompt in texts]))
        self.targets, self.masks = torch.cat(targets), torch.cat(masks)
        self.references = torch.cat(references)
        self.ids, self.reference_ids = (torch.cat(p).to(device) for p in (ids, reference_ids))
        self.counts = torch.tensor(counts, device=device)
        self.first_reference = self.counts.cumsum(0) - self.counts
        self.empty = data.empty_ids.to(device)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = (self.targets, self.masks, self.references, self.ids, self.reference_ids)
        return sum(part.nbytes for part in parts)

    def generator(self, draws: Draws) -> torch.Generator:
        """All chance of a part of a step: a function of seed, step and the part's first place."""
        value = 0
        for number in draws.key[0]:
            value = ((value ^ number) * _MIX + 1) % 2**64
        return torch.Generator(self.device).manual_seed(value >> 1)

    def batch(self, indices: Tensor, generator: torch.Generator) -> ResidentBatch:
        """Gather samples int64 [B]; drop prompts and references as often as the settings say."""
        rows = indices.to(self.device, non_blocking=True)
        settings = self.settings
        both, reference, prompt, which = torch.rand(
            4, len(rows), generator=generator, device=self.device
        )
        drop_both = both < settings.both_dropout
        drop_prompt = (prompt < settings.prompt_dropout) | drop_both
        number = (which * self.counts[rows]).long().clamp(max=self.counts[rows] - 1)
        return ResidentBatch(
            latents=self.targets[rows].float(),
            references=self.references[self.first_reference[rows] + number].float(),
            masks=self.masks[rows].float() / 255.0,
            ids=torch.where(drop_prompt[:, None], self.empty, self.ids[rows]),
            reference_ids=self.reference_ids[rows],
            reads=(reference >= settings.reference_dropout) & ~drop_both,
        )
