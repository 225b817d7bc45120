"""Stage `vae`: an AutoencoderKL for pictures of the small world.

Loss: L1 on pixels, L1 on differences of neighbours (edges stay sharp without an adversary), and a
small KL term. Afterwards `scaling_factor` is set so that latents have unit variance (Rombach et al.
2022, section G).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bootpig_rt.training.config import TrainConfig, VaeConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.pictures import Pictures, to_tensor, to_uint8
from bootpig_rt.training.stage import Validation

CALIBRATION_PICTURES = 512


def build_vae(config: VaeConfig, size_px: int) -> Any:
    """Return an untrained AutoencoderKL; each level after the first halves the picture."""
    levels = len(config.block_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=size_px,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


class VaeStage:
    """Trains on targets and references alike; see `stage.Stage`."""

    def __init__(
        self,
        config: TrainConfig,
        pictures: Pictures,
        validation: Pictures | None,
        device: torch.device,
    ) -> None:
        self.targets, self.references = pictures.targets, pictures.references
        self.validation = validation
        self.num_samples = len(self.targets)
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.vae = build_vae(config.vae, self.targets.shape[1]).to(device)

    def modules(self) -> dict[str, nn.Module]:
        """The VAE."""
        return {"vae": self.vae}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all weights."""
        rate = self.config.optimizer.learning_rate
        return [{"params": list(self.vae.parameters()), "lr": rate}]

    def _batch(self, indices: Tensor) -> Tensor:
        # A quarter of the pictures are references: white ground is rare in targets.
        rows = [
            self.references[i % len(self.references)] if i % 4 == 0 else self.targets[i]
            for i in indices.tolist()
        ]
        return torch.cat([to_tensor(row[None]) for row in rows]).to(self.device)

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some pictures; `draws` gives the posterior's sample."""
        weights = self.config.vae
        pixels = self._batch(indices)
        posterior = self.vae.encode(pixels).latent_dist
        noise = draws.normal(*posterior.mean.shape[1:]).to(self.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        difference = decoded - pixels
        l1 = difference.abs().mean()
        gradient = sum(e.abs().mean() for e in _edges(difference))
        kl = posterior.kl().mean() / pixels[0].numel()
        loss = l1 + weights.gradient_weight * gradient + weights.kl_weight * kl
        psnr = -10 * torch.log10(difference.detach().pow(2).mean() / 4)
        return loss, {"l1": l1, "kl": kl, "psnr_db": psnr}

    @torch.no_grad()
    def validate(self) -> Validation:
        """Reconstruct held-out pictures: originals above reconstructions, and their PSNR."""
        if self.validation is None:
            return Validation()
        held_out = self.validation
        pixels = torch.cat([to_tensor(held_out.targets[:12]), to_tensor(held_out.references[:4])])
        decoded = self.vae.decode(self.vae.encode(pixels.to(self.device)).latent_dist.mode()).sample
        mse = (decoded.float().cpu().clamp(-1, 1) - pixels).pow(2).mean()
        figures = {"psnr_db": float(-10 * torch.log10(mse / 4))}
        return Validation(figures, [to_uint8(pixels), to_uint8(decoded)])

    @torch.no_grad()
    def result(self) -> Any:
        """The VAE, its scaling factor set from a sample of latents."""
        pixels = to_tensor(self.targets[:CALIBRATION_PICTURES]).to(self.device)
        latents = torch.cat([self.vae.encode(p).latent_dist.mode() for p in pixels.split(64)])
        self.vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
        return self.vae
