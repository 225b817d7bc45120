"""Stage `pair`: BootPIG as published (paper, sections 3.2 and 4.1), on a finished base.

The base's weights are copied into a Reference U-Net of its own. All of it is trained, and of the
Base U-Net the self-attentions alone, which have become reference self-attentions. Everything else,
the VAE and the text encoder too, is frozen.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.models.load import Pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.stages.diffusion import (
    DiffusionData,
    Models,
    diffusion_loss,
    load_vae,
    read_tokenizer,
    scheduler_config,
    trainable,
    validate,
)


def freeze_all_but_self_attention(unet: nn.Module) -> None:
    """Leave only the q, k, v and output projections of every self-attention trainable."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".attn1." in name)


class PairStage:
    """The untied pair; see `trainer.Stage`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """Load the finished base and untie it."""
        self.config, self.start = config, Path(config.start_from)
        vae = load_vae(self.start, device)
        self.data = DiffusionData(config, vae, read_tokenizer(self.start), device)
        self.num_samples = len(self.data.train.targets)
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.sample_size_px = scale * int(self.data.train.targets.shape[-1])
        self.unet: Any = UNet2DConditionModel.from_pretrained(self.start / "unet").to(device)
        self.reference_unet = copy.deepcopy(self.unet)
        freeze_all_but_self_attention(self.unet)
        text_encoder: Any = CLIPTextModel.from_pretrained(self.start / "text_encoder").to(device)
        text_encoder.requires_grad_(False)
        self.models = Models(
            BaseUNet(self.unet), ReferenceUNet(self.reference_unet), text_encoder, vae
        )

    def modules(self) -> dict[str, nn.Module]:
        """Both U-Nets."""
        return {"base_unet": self.unet, "ref_unet": self.reference_unet}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The Reference U-Net, and the RSA layers of the base at a rate of their own."""
        rates = self.config.optimizer
        return [
            {"params": trainable(self.reference_unet), "lr": rates.learning_rate},
            {"params": trainable(self.unet), "lr": rates.rsa_learning_rate},
        ]

    def loss(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `diffusion_loss`."""
        return diffusion_loss(self.models, self.data, indices, generator)

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """See `diffusion.validate`."""
        return validate(self.models, self.data, folder, step)

    def export(self, folder: Path) -> None:
        """Save the pair in the single-folder layout that `Pipeline` loads, in float16."""
        settings = self.config.diffusion
        config = PairConfig(
            name=Path(self.config.output).name,
            sample_size_px=self.sample_size_px,
            reference_timestep=settings.reference_timestep,
            subject_share=REFERENCE_LENGTH,
            ref_scale=settings.ref_scale,
            merge=settings.merge,
            image_guidance_scale=2.0,
            text_guidance_scale=2.0,
        )
        pair = Pair(
            base=self.models.base,
            reference=self.models.reference,
            vae=self.models.vae,
            text_encoder=self.models.text_encoder,
            tokenizer_folder=self.start / "tokenizer",
            scheduler=scheduler_config(settings.prediction_type),
            config=config,
            fingerprint="",
        )
        save_pair(pair, folder)
