"""Stage `vae`: an AutoencoderKL for pictures of the small world.

Loss: L1 on pixels, L1 on differences of neighbours (edges stay sharp without an adversary), and a
small KL term. Afterwards `scaling_factor` is set so that latents have unit variance (Rombach et al.
2022, section G).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.unet import WalkedUNet
from bootpig_rt.training.config import TrainConfig, VaeConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.order import Order
from bootpig_rt.training.pictures import to_tensor, to_uint8
from bootpig_rt.training.read_ahead import ReadAhead
from bootpig_rt.training.samples import Pixels, Samples
from bootpig_rt.training.stage import Validation

CALIBRATION_PICTURES = 512
VALIDATION_PICTURES, VALIDATION_TARGETS = 16, 12
"""Pictures that are shown, and how many of them are targets; the others are references."""


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
    """Trains on targets and references alike, all squares of one size; see `stage.Stage`.

    Raises:
        ConfigError: The samples are of several sizes.
    """

    def __init__(
        self,
        config: TrainConfig,
        samples: Samples,
        validation: Samples | None,
        device: torch.device,
    ) -> None:
        self.samples, self.validation = samples, validation
        self.order = Order(samples.shard_sizes, window=config.samples.window)
        self.config, self.device = config, device
        self._ahead = ReadAhead(self._read, config.samples.readers)
        sizes = np.unique(np.concatenate([samples.sizes_px, samples.reference_sizes_px]))
        if len(sizes) > 1:
            raise ConfigError(
                f"{samples.folder} has pictures with sides from {sizes[0]} to {sizes[-1]} px, "
                "stage 'vae' expects squares of one size; make them so, with "
                f"`bootpig-rt synthesize --size-px {sizes[0]}` for the small world"
            )
        torch.manual_seed(config.seed)
        self.vae = build_vae(config.vae, int(sizes[0])).to(device)
        if config.checkpointing == "blocks":
            self.vae.enable_gradient_checkpointing()

    def modules(self) -> dict[str, nn.Module]:
        """The VAE."""
        return {"vae": self.vae}

    def walks(self) -> list[WalkedUNet]:
        """None: the VAE is diffusers' own."""
        return []

    def frozen(self) -> list[nn.Module]:
        """Nothing."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all weights."""
        rate = self.config.optimizer.learning_rate
        return [{"params": list(self.vae.parameters()), "lr": rate}]

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Begin to read the pictures that come next."""
        self._ahead.expect(upcoming)

    def _read(self, indices: Tensor, draws: Draws) -> Tensor:
        """Pixels of a batch, [B, 3, H, W]; in any thread."""
        # A quarter of the pictures are references: white ground is rare in targets.
        samples, references = self.samples, len(self.samples.reference_sizes_px)
        return stacked(
            samples.reference_at(n % references) if n % 4 == 0 else target_of(samples, n)
            for n in indices.tolist()
        )

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some pictures; `draws` gives the posterior's sample."""
        weights = self.config.vae
        pixels = self._ahead.get(indices, draws).to(self.device)
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
        count = min(len(held_out), VALIDATION_TARGETS)
        shown = [target_of(held_out, sample) for sample in range(count)]
        count = min(len(held_out), VALIDATION_PICTURES - VALIDATION_TARGETS)
        shown += [held_out.reference(sample, 0) for sample in range(count)]
        pixels = stacked(shown)
        decoded = self.vae.decode(self.vae.encode(pixels.to(self.device)).latent_dist.mode()).sample
        mse = (decoded.float().cpu().clamp(-1, 1) - pixels).pow(2).mean()
        figures = {"psnr_db": float(-10 * torch.log10(mse / 4))}
        return Validation(figures, [to_uint8(pixels), to_uint8(decoded)])

    @torch.no_grad()
    def result(self) -> Any:
        """The VAE, its scaling factor set from a sample of latents."""
        latents = []
        count = min(len(self.samples), CALIBRATION_PICTURES)
        for first in range(0, count, 64):
            some = range(first, min(first + 64, count))
            pixels = stacked(target_of(self.samples, sample) for sample in some)
            latents.append(self.vae.encode(pixels.to(self.device)).latent_dist.mode())
        self.vae.register_to_config(scaling_factor=float(1.0 / torch.cat(latents).std()))
        return self.vae


def target_of(samples: Samples, sample: int) -> Pixels:
    """The target of a sample, uint8 [H, W, 3]."""
    return samples.read(sample, references=()).target


def stacked(pictures: Iterable[Pixels]) -> Tensor:
    """Pictures, uint8 [H, W, 3] each -> float32 [N, 3, H, W] in [-1, 1]."""
    return to_tensor(np.stack(list(pictures)))
