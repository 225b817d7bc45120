"""Drawing with modules in training: validation sheets, and what teacher and student say.

Serving has its own path (`engine/`); this one works on modules, without files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bootpig_rt.diffusion.solver import SolverTable
from bootpig_rt.models.control import Control
from bootpig_rt.models.load import Pair
from bootpig_rt.models.rows import RowPlan, plain_rows, plan_rows
from bootpig_rt.models.text_encoders import TwoTextEncoders
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers
from bootpig_rt.text.tokenizer import whole_picture


@dataclass(frozen=True)
class Guidance:
    """Scales of the image branch and of the text branch (paper, section 3.4)."""

    image: float
    text: float

    def combine(self, text_image: Tensor, image: Tensor, uncond: Tensor) -> Tensor:
        """The guided output of a picture's three rows."""
        return uncond + self.image * (image - uncond) + self.text * (text_image - image)


def guidance_of(pair: Pair) -> Guidance:
    """The scales of `pair.json`."""
    return Guidance(pair.config.image_guidance_scale, pair.config.text_guidance_scale)


@dataclass(frozen=True)
class Conditions:
    """What B pictures are drawn from.

    Attributes:
        prompt: [B, S, E], text states of the prompts.
        negative: [B, S, E], of the empty prompt.
        features: L tensors [N, M_l, C_l] of the Reference U-Net; None when no picture has one.
        ref_of_row: int64 [B, R], -1 for none.
    """

    prompt: Tensor
    negative: Tensor
    features: tuple[Tensor, ...] | None
    ref_of_row: Tensor

    def plan(self, ref_of_row: Tensor) -> RowPlan:
        """The plan of rows that read these references."""
        if self.features is None:
            return plain_rows(len(ref_of_row))
        return plan_rows(ref_of_row, len(self.features[0]), device=self.prompt.device)


@torch.no_grad()
def encode_conditions(
    pair: Pair,
    ids: Tensor,
    empty_ids: Tensor,
    references: Tensor,
    reference_ids: Tensor,
    ref_of_row: Tensor,
    *,
    like: Tensor,
) -> Conditions:
    """Read prompts, and references once at t = 0.

    Tokens of the prompts are int64 [B, S], of the empty prompt [1, S], of the references [N, S];
    references are clean latents [N, C, h, w], N may be 0; `ref_of_row` is int64 [B, R], -1 for
    none. `like` are latents of the size of what is drawn, which pairs may be told.
    """
    states = pair.text_encoder(torch.cat([ids, empty_ids, reference_ids]))[0]
    count = len(ids)
    states = told_size(pair, states, count + 1, like)
    features = None
    if len(references):
        clean = torch.zeros(len(references), dtype=torch.long, device=references.device)
        features = pair.reference(references, clean, states[count + 1 :])
    negative = states[count : count + 1].expand(count, -1, -1)
    return Conditions(states[:count], negative, features, ref_of_row)


def told_size(pair: Pair, states: Tensor, count: int, latents: Tensor) -> Tensor:
    """Text states of which the first ones are told the size of the pictures of some latents.

    A pair that is told no sizes has its states as they are; the rest are references, which have the
    pair's own size.
    """
    text: object = pair.text_encoder
    if not isinstance(text, TwoTextEncoders):
        return states
    factor = 2 ** (len(pair.vae.config.block_out_channels) - 1)
    height, width = (factor * side for side in latents.shape[-2:])
    told = text.told_sizes(states[:count], whole_picture(width, height))
    return torch.cat([told, states[count:]])


class Drawer:
    """One U-Net with what it reads for a batch: gives its output at any latents and timestep.

    The base is the teacher's or the student's; the pair gives the merge and the scale of reference
    keys. Without `guidance` the `text_image` row alone is computed. `control` is a module and the
    embedded maps of the pictures, [B, C0, h, w].
    """

    def __init__(
        self,
        base: BaseUNet,
        conditions: Conditions,
        pair: Pair,
        guidance: Guidance | None,
        *,
        control: tuple[Control, Tensor] | None = None,
    ) -> None:
        """Project the references, once for all steps, and lay out the rows."""
        self._control = control
        self._base, self._guidance, self._merge = base, guidance, pair.config.merge
        self.table: ReferenceKVLayers = ()
        if conditions.features is not None:
            self.table = base.project_reference(
                conditions.features, ref_scale=pair.config.ref_scale
            )
        refs, prompt, negative = conditions.ref_of_row, conditions.prompt, conditions.negative
        if guidance is None:
            self._embeds, self._rows = prompt, conditions.plan(refs)
            return
        # As in the runtime, the image row of a picture without a subject equals its uncond row.
        rows = torch.cat([refs, refs, torch.full_like(refs, -1)])
        self._embeds, self._rows = torch.cat([prompt, negative, negative]), conditions.plan(rows)

    def output(self, latents: Tensor, t: int) -> Tensor:
        """The model output, guided where there is guidance, float32 [B, C, h, w]."""
        copies = 1 if self._guidance is None else 3
        rows = torch.cat([latents] * copies)
        steps = torch.full((len(rows),), t, device=rows.device)
        table = self.table or None
        plan = None if table is None else self._rows
        residuals: tuple[Tensor, ...] = ()
        if self._control is not None:
            control, hints = self._control
            residuals = control(rows, steps, self._embeds, torch.cat([hints] * copies))
        output, _ = self._base.draw(
            rows, steps, self._embeds, table, plan, merge=self._merge, residuals=residuals
        )
        output = output.float()
        if self._guidance is None:
            return output
        return self._guidance.combine(*output.chunk(3))

    def picture(self, table: SolverTable, noise: Tensor) -> Tensor:
        """Draw from noise of unit variance to latents [B, C, h, w]."""
        latents = noise
        history = table.initial_history(latents)
        for i, t in enumerate(table.timesteps.tolist()):
            output = self.output(latents, t)
            latents, history = table.step(i, latents, output=output, history=history)
        return latents
