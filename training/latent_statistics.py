"""By what latents are scaled for a U-Net, channel by channel.

Latents of a patch autoencoder have unit variance in every channel, whether it holds much of a
picture or little. A U-Net that sees them so spends itself on the small ones; at their own spread,
what a channel changes in pixels, the small ones are lost in noise from the first step. So each gets
its own spread to a power between 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bootpig_rt.models.latent_scale import LatentScale

_MEASURED_PICTURES = 32
_STEP = 0.25
"""How far a channel is moved to see what it changes, in shares of its standard deviation."""


@torch.no_grad()
def set_statistics(vae: Any, latents: Tensor, *, power: float) -> None:
    """Set `latents_mean` and `latents_std` of an autoencoder.

    Args:
        vae: A `PatchAutoencoder`.
        latents: [N, C, h, w], not scaled, of pictures it was trained on.
        power: Of the spread; the mean square of all scaled latents together is 1.
    """
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    effect = pixel_effect(vae, latents[:_MEASURED_PICTURES], _STEP * std) / _STEP
    spread = effect.clamp(min=1e-6).pow(power)
    spread = spread / spread.pow(2).mean().sqrt()
    vae.register_to_config(
        latents_mean=tuple(mean.tolist()), latents_std=tuple((std / spread).tolist())
    )


@torch.no_grad()
def pixel_weight(vae: Any, latents: Tensor) -> Tensor:
    """What a squared error in each channel of scaled latents weighs in pixels, [C, 1, 1]; mean 1.

    Args:
        vae: Any autoencoder.
        latents: [N, C, h, w], scaled, of one size; their values must be finite.
    """
    scale = LatentScale(vae)
    plain = scale.unscaled(latents)
    change = (scale.unscaled(latents + _STEP) - plain)[0, :, 0, 0]
    weight = pixel_effect(vae, plain, change).pow(2).to(latents.device)
    return (weight / weight.mean())[:, None, None]


@torch.no_grad()
def pixel_effect(vae: Any, latents: Tensor, change: Tensor) -> Tensor:
    """Root mean square change of pixels when one channel of all latents is moved, [C].

    Args:
        vae: Any autoencoder.
        latents: [N, C, h, w], not scaled.
        change: [C], by how much each channel is moved, up and down from place to place.
    """
    generator = torch.Generator().manual_seed(0)
    before = vae.decode(latents).sample.float()
    signs = torch.randint(0, 2, (len(latents), *latents.shape[2:]), generator=generator) * 2 - 1
    effects = []
    for channel, by in enumerate(change):
        moved = latents.clone()
        moved[:, channel] += by * signs.to(latents)
        effects.append((vae.decode(moved).sample.float() - before).pow(2).mean().sqrt())
    return torch.stack(effects).cpu()
