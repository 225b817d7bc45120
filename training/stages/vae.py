"""Stage `vae`: an AutoencoderKL for pictures of the small world.

Loss: L1 on pixels, L1 on differences of neighbours (edges stay sharp without an adversary), and a
small KL term. Afterwards `scaling_factor` is set so that latents have unit variance (Rombach et al.
2022, section G).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bootpig_rt.training.config import TrainConfig, VaeConfig
from bootpig_rt.training.pictures import load_pictures, save_sheet, to_tensor, to_uint8

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
    """Trains on targets and references alike; see `trainer.Stage`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """Load the pictures and build the model."""
        pictures = load_pictures(Path(config.data), max_samples=config.max_samples)
        self.targets, self.references = pictures.targets, pictures.references
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

    def loss(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some pictures; `generator` draws the posterior's sample."""
        weights = self.config.vae
        pixels = self._batch(indices)
        posterior = self.vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        difference = decoded - pixels
        l1 = difference.abs().mean()
        gradient = sum(e.abs().mean() for e in _edges(difference))
        kl = posterior.kl().mean() / pixels[0].numel()
        loss = l1 + weights.gradient_weight * gradient + weights.kl_weight * kl
        psnr = -10 * torch.log10(difference.detach().pow(2).mean() / 4)
        return loss, {"l1": l1, "kl": kl, "psnr_db": psnr}

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Write originals above reconstructions; return their PSNR."""
        pixels = torch.cat([to_tensor(self.targets[:12]), to_tensor(self.references[:4])])
        decoded = self.vae.decode(self.vae.encode(pixels.to(self.device)).latent_dist.mode()).sample
        mse = (decoded.float().cpu().clamp(-1, 1) - pixels).pow(2).mean()
        save_sheet([to_uint8(pixels), to_uint8(decoded)], folder / f"step-{step:07d}.png")
        return {"psnr_db": float(-10 * torch.log10(mse / 4))}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Set the scaling factor from a sample of latents and save."""
        pixels = to_tensor(self.targets[:CALIBRATION_PICTURES]).to(self.device)
        latents = torch.cat([self.vae.encode(p).latent_dist.mode() for p in pixels.split(64)])
        self.vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
        self.vae.save_pretrained(folder / "vae")
