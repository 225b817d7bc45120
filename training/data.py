"""Batches for the U-Nets: latents with what is dropped, and which references each row reads.

Knows latents, texts and dropout; knows nothing about models or losses. All chance in a batch is a
function of seed, step and place, so batches are read ahead by threads, and are the same in any
number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.latents import Latents, StoredLatents
from bootpig_rt.training.order import Order
from bootpig_rt.training.read_ahead import ReadAhead
from bootpig_rt.training.references import References
from bootpig_rt.training.text_states import StoredTexts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One batch on the device; the first `kept` rows have references, `ref_of_row` [kept, R].

    `order` are the rows' places in the indices that were asked for; `owner` the row of each
    reference. `states` [B + n, S, E] are text states of `ids` and then `reference_ids`, None where
    they are to be computed.
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
    states: Tensor | None


@dataclass(frozen=True)
class _Read:
    """What a batch is made of, on the CPU; names as in `Batch`."""

    latents: Tensor
    masks: Tensor
    ids: Tensor
    references: Tensor
    reference_ids: Tensor
    ref_of_row: Tensor
    order: list[int]
    owner: list[int]
    states: Tensor | None


class DiffusionData:
    """Samples of a data set as the U-Nets see them, and a few held-out ones.

    `config` says how often prompts and references are left out, how many are read, and how samples
    are shuffled and read ahead.
    """

    def __init__(
        self,
        train: StoredLatents,
        references: References,
        validation: Latents | None,
        tokenizer: Tokenizer,
        config: TrainConfig,
        device: torch.device,
        *,
        texts: StoredTexts | None = None,
    ) -> None:
        self.train, self.references, self.validation = train, references, validation
        self.samples = train.samples
        self.tokenizer, self.dropout, self.device = tokenizer, config.diffusion, device
        self.order = Order(
            self.samples.shard_sizes,
            buckets=train.sizing.bucket_of(self.samples.sizes_px),
            window=config.samples.window,
        )
        self._texts, self._told_cut = texts, False
        self._is_told_class = config.diffusion.reference_prompt == "class"
        self.empty_ids = self.ids([""])
        self._ahead = ReadAhead(self._read, config.samples.readers)

    def ids(self, texts: list[str]) -> Tensor:
        """Tokenise texts to int64 [N, S], as `Tokenizer` does; tell the first that is cut."""
        ids = self.tokenizer(texts, tells_cut=False)
        if not self._told_cut:
            length = self.tokenizer.max_length
            full = np.flatnonzero(ids[:, length - 2] != self.tokenizer.pad_id).tolist()
            cut = [n for n in full if self.tokenizer.num_tokens(texts[n]) > length]
            if cut:
                self._told_cut = True
                logger.warning(
                    "a caption has %d tokens, the text encoder reads %d, the end is ignored; so it "
                    "is with any other that is as long: %r",
                    self.tokenizer.num_tokens(texts[cut[0]]),
                    length,
                    texts[cut[0]],
                )
        return torch.from_numpy(ids)

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Begin to read the batches that come next."""
        self._ahead.expect(upcoming)

    def batch(self, indices: Tensor, draws: Draws) -> Batch:
        """Gather samples, drop prompts and references, choose which references are read.

        Raises:
            InputError: A shard was changed or cut meanwhile, or a picture in it is damaged.
        """
        read = self._ahead.get(indices, draws)
        references = read.latents[:0]
        if read.owner:
            references = self.references.latents(read.references)
        return Batch(
            latents=self._send(read.latents).float(),
            masks=self._send(read.masks).float() / 255.0,
            ids=self._send(read.ids),
            kept=len(read.ref_of_row),
            reference_latents=self._send(references).float(),
            reference_ids=self._send(read.reference_ids),
            ref_of_row=read.ref_of_row,
            order=read.order,
            owner=read.owner,
            states=None if read.states is None else self._send(read.states).float(),
        )

    def _read(self, indices: Tensor, draws: Draws) -> _Read:
        """Read a batch, in any thread."""
        settings, train = self.dropout, self.train
        both, reference, prompt = draws.uniform(3).unbind(1)
        if settings.reference_dropout_draw == "step":
            reference = torch.full_like(reference, draws.uniform_of_step())
        drop_both = both < settings.both_dropout
        drop_reference = (reference < settings.reference_dropout) | drop_both
        drop_prompt = (prompt < settings.prompt_dropout) | drop_both
        # Rows with a reference come first, so that attention works on two plain blocks.
        order = torch.argsort(drop_reference.long(), stable=True)
        samples, drop_prompt = indices[order].tolist(), drop_prompt[order]
        kept = int((~drop_reference).sum())
        texts = [self.samples.texts(sample) for sample in samples]
        chosen, ref_of_row = self._choose(samples[:kept], draws.part(order.tolist()))
        owner = torch.arange(kept).repeat_interleave((ref_of_row >= 0).sum(1)).tolist()
        rngs = [draws.rng(int(order[row])) for row in owner]
        prompts = zip(texts, drop_prompt.tolist(), strict=True)
        return _Read(
            latents=self._pin(train.targets(samples)),
            masks=self._pin(train.masks(samples)),
            ids=self.ids(["" if is_dropped else caption for (caption, _), is_dropped in prompts]),
            references=self.references.read(chosen, rngs),
            reference_ids=self.ids([texts[row][self._is_told_class] for row in owner]),
            ref_of_row=ref_of_row,
            order=order.tolist(),
            owner=owner,
            states=self._states(samples, drop_prompt, owner),
        )

    def _choose(self, samples: list[int], draws: Draws) -> tuple[list[tuple[int, int]], Tensor]:
        """The references that are read [n], and which of them each sample reads [kept, R]."""
        most = self.dropout.max_references
        chosen: list[tuple[int, int]] = []
        table = torch.full((len(samples), most), -1, dtype=torch.long)
        for place, sample in enumerate(samples):
            count = self.samples.num_references(sample)
            for slot, number in enumerate(draws.order(place, count)[:most]):
                table[place, slot] = len(chosen)
                chosen.append((sample, number))
        return chosen, table

    def _states(self, samples: list[int], drop_prompt: Tensor, owner: list[int]) -> Tensor | None:
        if self._texts is None:
            return None
        captions = self._texts.captions(samples)
        captions[drop_prompt] = self._texts.empty
        told = self._texts.reference_prompts if self._is_told_class else self._texts.captions
        return self._pin(torch.cat([captions, told([samples[row] for row in owner])]))

    def _pin(self, tensor: Tensor) -> Tensor:
        """Where it can be sent while the device computes."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
