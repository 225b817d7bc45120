"""A plain sampler for validation during training: three guidance rows, clean references.

Serving has its own path (`pipeline.py`); this one works on modules in training, without files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bootpig_rt.diffusion.solver import NoiseSchedule, solver_table
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet


@dataclass(frozen=True)
class Guidance:
    """Scales of the image branch and of the text branch (paper, section 3.4)."""

    image: float
    text: float

    def combine(self, text_image: Tensor, image: Tensor, uncond: Tensor) -> Tensor:
        """The guided output of a picture's three rows."""
        return uncond + self.image * (image - uncond) + self.text * (text_image - image)


@torch.no_grad()
def sample(
    base: BaseUNet,
    reference: ReferenceUNet,
    *,
    scheduler: dict[str, Any],
    prompt_embeds: Tensor,
    negative_embeds: Tensor,
    reference_latents: Tensor,
    reference_embeds: Tensor,
    guidance: Guidance,
    steps: int,
    ref_scale: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw one picture for each of B references.

    Args:
        base: Base U-Net.
        reference: Reference U-Net, run once at t = 0.
        scheduler: Noise schedule in diffusers' form.
        prompt_embeds: [B, S, E].
        negative_embeds: [1, S, E], of the empty prompt.
        reference_latents: [B, C, h, w], scaled and clean.
        reference_embeds: [B, S, E], of the reference prompts.
        guidance: Scales.
        steps: DDIM steps.
        ref_scale: Scale of the reference keys.
        generator: Draws the start, on the CPU.

    Returns:
        Latents [B, C, h, w].
    """
    count, device = len(prompt_embeds), prompt_embeds.device
    schedule = NoiseSchedule.from_config(scheduler)
    table = solver_table("ddim", schedule, steps).astype32()
    zeros = torch.zeros(count, dtype=torch.long, device=device)
    features = reference(reference_latents, zeros, reference_embeds)
    keys_values = base.project_reference(features, ref_scale=ref_scale)
    own = torch.arange(count)
    ref_of_row = torch.cat([own, own, torch.full((count,), -1)])[:, None]
    negative = negative_embeds.expand(count, -1, -1)
    embeds = torch.cat([prompt_embeds, negative, negative])
    latents = torch.randn(reference_latents.shape, generator=generator).to(device)
    history = table.initial_history(latents)
    for i, t in enumerate(table.timesteps.tolist()):
        rows = torch.cat([latents] * 3)
        steps_of_rows = torch.full((3 * count,), t, device=device)
        guided = guidance.combine(
            *base(rows, steps_of_rows, embeds, keys_values, ref_of_row).chunk(3)
        )
        latents, history = table.step(i, latents, output=guided, history=history)
    return latents
