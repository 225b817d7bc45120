"""Stage `vae`: an autoencoder for pictures of the small world, of diffusers' kind or of our own.

Loss: L1 on pixels and on differences of neighbours (edges stay sharp without an adversary); a small
KL term, or noise in the latents; and what the settings add. Afterwards the latents of an
AutoencoderKL get unit variance by `scaling_factor` (Rombach et al. 2022, section G); see
`latent_statistics` for those of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.latent_scale import mean_latents
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.models.unet import WalkedUNet
from bootpig_rt.training.config import TrainConfig, VaeConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.latent_statistics import set_statistics
from bootpig_rt.training.order import Order
from bootpig_rt.training.patch_basis import (
    PatchBasis,
    fit_basis,
    fit_neighbours,
    start_from_basis,
)
from bootpig_rt.training.pictures import to_tensor, to_uint8
from bootpig_rt.training.read_ahead import ReadAhead
from bootpig_rt.training.reconstruction import (
    Fidelity,
    edge_difference,
    scale_difference,
)
from bootpig_rt.training.samples import Pixels, Samples
from bootpig_rt.training.stage import Validation, trainable

CALIBRATION_PICTURES = 512
BASIS_PICTURES = 1024
VALIDATION_PICTURES, VALIDATION_TARGETS = 16, 12
"""Pictures that are shown, and how many of them are targets; the others are references."""
JUDGED_TARGETS = 128
"""Held-out targets over which subject and background are judged."""
PROJECTION_RATE = 0.1
"""Of the rate of networks. Steps as large as theirs would undo the start."""
_TOGETHER = 64


def build_vae(config: VaeConfig, size_px: int, start: Any = None) -> Any:
    """Return an untrained autoencoder; each level halves the picture.

    With `start` its encoder is that of this autoencoder, frozen, and latents are scaled as there.
    """
    channels, levels = config.block_channels, len(config.block_channels)
    decoder = {
        "block_out_channels": (3, *channels),
        "layers_per_block": (1, *([config.layers_per_block] * (levels - 1))),
    }
    if start is not None:
        vae = PatchAutoencoder.from_config({**start.config, **decoder})
        vae.encoder.load_state_dict(start.encoder.state_dict())
        vae.encoder.requires_grad_(False)
        return vae
    if config.kind == "patch":
        return PatchAutoencoder(
            latent_channels=config.latent_channels,
            encoder_channels=config.encoder_channels,
            encoder_layers=(config.layers_per_block, 1),
            sample_size=size_px,
            **decoder,
        )
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=size_px,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class VaeStage:
    """Trains on targets and references alike, all squares of one size; see `stage.Stage`.

    Raises:
        ConfigError: The samples are of several sizes, or of one that the settings do not divide.
    """

    def __init__(
        self,
        config: TrainConfig,
        samples: Samples,
        validation: Samples | None,
        device: torch.device,
        start: Any = None,
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
        side, settings = int(sizes[0]), config.vae
        torch.manual_seed(config.seed)
        if start is not None:
            check_start(start, settings, config.start_from)
        self.vae = build_vae(settings, side, start).to(device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        for name, size in (("pictures", side), ("vae.crop_px", settings.crop_px or side)):
            if size % self.factor or size > side:
                raise ConfigError(
                    f"{name} of {size} px, expected a multiple of {self.factor}, pixels of a "
                    f"latent, at most {side}, the pictures of {samples.folder}"
                )
        self._basis: PatchBasis | None = None
        if settings.kind == "patch":
            start_from_basis(self.vae, self.basis)
        if settings.kind != "kl":
            fit_neighbours(self.vae, self._first_pictures())
        if config.checkpointing == "blocks":
            self.vae.enable_gradient_checkpointing()

    @property
    def basis(self) -> PatchBasis:
        """Principal components of patches of the first pictures."""
        if self._basis is None:
            self._basis = fit_basis(self._first_pictures(), self.factor)
        return self._basis

    def _first_pictures(self) -> Iterator[Tensor]:
        """Those that a start is fitted to, in batches."""
        count = min(len(self.samples), BASIS_PICTURES)
        for first in range(0, count, _TOGETHER):
            some = range(first, min(first + _TOGETHER, count))
            yield stacked(self._whole(n)[0] for n in some)

    def modules(self) -> dict[str, nn.Module]:
        """The VAE."""
        return {"vae": self.vae}

    def walks(self) -> list[WalkedUNet]:
        """None: the VAE is walked by nobody."""
        return []

    def frozen(self) -> list[nn.Module]:
        """Nothing."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All weights; projections, which begin as good as they can be alone, move slowly."""
        rate = self.config.optimizer.learning_rate
        if self.config.vae.kind == "kl":
            return [{"params": list(self.vae.parameters()), "lr": rate}]
        halves = (self.vae.encoder, self.vae.decoder)
        known = {p for half in halves for p in half.project.parameters()}
        projections = [p for p in trainable(self.vae) if p in known]
        networks = [p for p in trainable(self.vae) if p not in known]
        return [
            {"params": networks, "lr": rate},
            {"params": projections, "lr": PROJECTION_RATE * rate},
        ]

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Begin to read the pictures that come next."""
        self._ahead.expect(upcoming)

    def _read(self, indices: Tensor, draws: Draws) -> Tensor:
        """Pixels of a batch, [B, 3, S, S]; in any thread."""
        settings = self.config.vae
        found = []
        for row, n in enumerate(indices.tolist()):
            pixels, mask = self._whole(n)
            if settings.crop_px:
                rng = draws.rng(row)
                pixels = cut(rng, pixels, mask, settings.crop_px, settings.subject_crops)
            found.append(pixels)
        return stacked(found)

    def _whole(self, n: int) -> tuple[Pixels, NDArray[np.bool_] | None]:
        """A picture of the data set, and where its subject is; a reference's is not known.

        A quarter are references: white ground is rare in targets.
        """
        if n % 4 == 0:
            return self.samples.reference_at(n % len(self.samples.reference_sizes_px)), None
        sample = self.samples.read(n, references=())
        return sample.target, sample.mask > 127

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some pictures; `draws` gives the noise of the latents."""
        weights = self.config.vae
        pixels = self._ahead.get(indices, draws).to(self.device)
        latents, kl = self._noised(pixels, draws)
        decoded = self.vae.decode(latents).sample.float()
        difference = decoded - pixels
        l1, squared = difference.abs().mean(), difference.pow(2).mean()
        loss = l1 + weights.gradient_weight * edge_difference(difference)
        if weights.squared_weight:
            loss = loss + weights.squared_weight * squared
        if weights.multiscale_weight:
            loss = loss + weights.multiscale_weight * scale_difference(difference)
        figures = {"l1": l1, "psnr_db": -10 * torch.log10(squared.detach() / 4)}
        if kl is not None:
            loss, figures["kl"] = loss + weights.kl_weight * kl, kl
        return loss, figures

    def _noised(self, pixels: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Latents as the decoder learns them, and KL for each number of a picture."""
        most, kl = self.config.vae.latent_noise, None
        if self.config.vae.kind == "kl":
            posterior = self.vae.encode(pixels).latent_dist
            latents, spread = posterior.mean, posterior.std
            kl = posterior.kl().mean() / pixels[0].numel()
        else:
            latents = mean_latents(self.vae, pixels)
            spread = torch.zeros((), device=self.device)
        noise = draws.normal(*latents.shape[1:]).to(self.device)
        latents = latents + spread * noise
        if most:
            # In shares of each channel's own spread, so nothing is gained by larger latents.
            own = latents.float().std(dim=(0, 2, 3), keepdim=True)
            share = most * draws.uniform(1, 1, 1).to(self.device)
            latents = latents + share * own * draws.normal(*latents.shape[1:]).to(self.device)
        return latents, kl

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] by way of latents and back, float32 on the CPU."""
        drawn = self.vae.decode(mean_latents(self.vae, pixels.to(self.device))).sample
        found: Tensor = drawn.float().cpu().clamp(-1, 1)
        return found

    @torch.no_grad()
    def validate(self) -> Validation:
        """Reconstruct held-out pictures: originals above reconstructions, floor below for ours.

        `psnr_db` is of the pictures that are shown, `subject_db` and `background_db` of held-out
        targets; `floor_db` what principal components of as many numbers give on subjects, and
        `above_floor_db` what is between.
        """
        if self.validation is None:
            return Validation()
        held_out, channels = self.validation, self.config.vae.latent_channels
        count = min(len(held_out), VALIDATION_TARGETS)
        shown = [target_of(held_out, sample) for sample in range(count)]
        count = min(len(held_out), VALIDATION_PICTURES - VALIDATION_TARGETS)
        shown += [held_out.reference(sample, 0) for sample in range(count)]
        pixels = stacked(shown)
        decoded = self.reconstruct(pixels)
        mse = (decoded - pixels).pow(2).mean()
        ours, least = Fidelity(), Fidelity()
        for first in range(0, min(len(held_out), JUDGED_TARGETS), _TOGETHER):
            last = min(first + _TOGETHER, len(held_out), JUDGED_TARGETS)
            read = [held_out.read(n, references=()) for n in range(first, last)]
            targets = stacked(sample.target for sample in read)
            masks = torch.from_numpy(np.stack([sample.mask for sample in read]))
            ours.add(targets, self.reconstruct(targets), masks)
            least.add(targets, self.basis.floor(targets, channels).clamp(-1, 1), masks)
        figures = {
            "psnr_db": float(-10 * torch.log10(mse / 4)),
            "subject_db": ours.subject_db,
            "background_db": ours.background_db,
            "floor_db": least.subject_db,
            "above_floor_db": ours.subject_db - least.subject_db,
        }
        rows = [to_uint8(pixels), to_uint8(decoded)]
        if self.config.vae.kind != "kl":
            rows.append(to_uint8(self.basis.floor(pixels, channels)))
        return Validation(figures, rows)

    @torch.no_grad()
    def result(self) -> Any:
        """The VAE, with what its latents are scaled by for a U-Net."""
        if self.config.vae.kind == "patch_decoder":
            return self.vae
        count = min(len(self.samples), CALIBRATION_PICTURES)
        latents = []
        for first in range(0, count, _TOGETHER):
            some = range(first, min(first + _TOGETHER, count))
            pixels = stacked(target_of(self.samples, sample) for sample in some)
            latents.append(mean_latents(self.vae, pixels.to(self.device)))
        if self.config.vae.kind == "kl":
            self.vae.register_to_config(scaling_factor=float(1.0 / torch.cat(latents).std()))
        else:
            set_statistics(self.vae, torch.cat(latents), power=self.config.vae.channel_spread)
        return self.vae


def check_start(start: Any, settings: VaeConfig, name: str) -> None:
    """Refuse an autoencoder whose latents a decoder of these settings cannot read.

    Raises:
        ConfigError: It is of another kind, or has another factor or number of channels.
    """
    if not isinstance(start, PatchAutoencoder):
        raise ConfigError(
            f"start_from {name} has an autoencoder of class {type(start).__name__}, expected a "
            "PatchAutoencoder: train one with vae.kind 'patch'"
        )
    wanted = len(start.config.block_out_channels) - 1, start.config.latent_channels
    if (len(settings.block_channels), settings.latent_channels) != wanted:
        raise ConfigError(
            f"vae.block_channels has {len(settings.block_channels)} numbers and "
            f"vae.latent_channels is {settings.latent_channels}, expected {wanted[0]} and "
            f"{wanted[1]} as in {name}"
        )


def target_of(samples: Samples, sample: int) -> Pixels:
    """The target of a sample, uint8 [H, W, 3]."""
    return samples.read(sample, references=()).target


def stacked(pictures: Iterable[Pixels]) -> Tensor:
    """Pictures, uint8 [H, W, 3] each -> float32 [N, 3, H, W] in [-1, 1]."""
    return to_tensor(np.stack(list(pictures)))


def cut(
    rng: np.random.Generator,
    pixels: Pixels,
    mask: NDArray[np.bool_] | None,
    side: int,
    subject_crops: float,
) -> Pixels:
    """A square of a picture [H, W, 3], mirrored in half of all cases.

    In a share `subject_crops` it lies around a pixel of the subject, where that is known.
    """
    height, width = pixels.shape[:2]
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    if mask is not None and rng.random() < subject_crops and mask.any():
        places = np.flatnonzero(mask)
        row, column = divmod(int(places[rng.integers(len(places))]), width)
        top = int(np.clip(row - side // 2, 0, height - side))
        left = int(np.clip(column - side // 2, 0, width - side))
    found = pixels[top : top + side, left : left + side]
    return found[:, ::-1] if rng.random() < 0.5 else found
