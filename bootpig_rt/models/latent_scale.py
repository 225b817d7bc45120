"""Between an autoencoder's own latents and those of a U-Net, for every kind of autoencoder.

diffusers' configurations say it in three ways, which may go together: `shift_factor` and
`scaling_factor` for all channels, `latents_mean` and `latents_std` for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mean_latents(vae: Any, pixels: Tensor) -> Tensor:
    """What an autoencoder makes of pictures [N, 3, H, W], without chance, not scaled."""
    encoded = vae.encode(pixels)
    latents = getattr(encoded, "latents", None)  # AutoencoderTiny and ours have no chance in them
    found: Tensor = encoded.latent_dist.mean if latents is None else latents
    return found


class LatentScale:
    """Scales the latents of one autoencoder: `(x - mean) * factor`, and back.

    Args:
        vae: Its configuration is read; the numbers are kept on its device.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        scaling = getattr(config, "scaling_factor", None)
        factor = 1.0 if scaling is None else float(scaling)
        shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.mean: Tensor | float = shift
        self.factor: Tensor | float = factor
        means, stds = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if means is not None or stds is not None:
            channels = int(config.latent_channels)
            mean = torch.tensor(means if means is not None else [0.0] * channels)
            std = torch.tensor(stds if stds is not None else [1.0] * channels)
            column = (1, -1, 1, 1)
            self.mean = (shift + mean).view(column).to(vae.device)
            self.factor = (factor / std).view(column).to(vae.device)

    def scaled(self, latents: Tensor) -> Tensor:
        """An autoencoder's latents float32 [N, C, h, w] as a U-Net reads them."""
        found: Tensor = (latents - self.mean) * self.factor
        return found

    def unscaled(self, latents: Tensor) -> Tensor:
        """A U-Net's latents float32 [N, C, h, w] as the autoencoder decodes them."""
        found: Tensor = latents / self.factor + self.mean
        return found

    def numbers(self) -> list[list[float]]:
        """Mean and factor: of all channels, or of each."""
        return [torch.as_tensor(part).flatten().tolist() for part in (self.mean, self.factor)]
