"""Stage `base`: a text-to-image U-Net and its text encoder from nothing, with reference rows.

Reference and Base U-Net are the same weights here: the U-Net reads the clean reference at t = 0 and
its features become keys and values of the rows that draw. So the path from the reference is trained
from the first step, which a text-to-image model alone never does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.training.config import TrainConfig, UNetConfig
from bootpig_rt.training.pictures import load_pictures
from bootpig_rt.training.stages.diffusion import (
    DiffusionData,
    Models,
    diffusion_loss,
    load_vae,
    read_tokenizer,
    scheduler_config,
    trainable,
    validate,
    write_json,
)
from bootpig_rt.training.tokens import train_tokenizer


def build_unet(config: UNetConfig, *, latent_channels: int, latent_size: int) -> Any:
    """Return an untrained U-Net with cross-attention at every level."""
    levels = len(config.block_channels)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.block_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=config.text_width,
        # diffusers calls the number of heads attention_head_dim.
        attention_head_dim=tuple(c // config.head_dim for c in config.block_channels),
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
    )


def build_text_encoder(config: UNetConfig, vocabulary: int) -> Any:
    """Return an untrained CLIP text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.max_tokens,
            projection_dim=config.text_width,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


class BaseStage:
    """U-Net and text encoder; the VAE is frozen. See `trainer.Stage`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """Train the tokenizer, read or make latents, build the models."""
        self.config, self.start = config, Path(config.start_from)
        self.tokenizer_folder = Path(config.output) / "tokenizer"
        vae = load_vae(self.start, device)
        if not (self.tokenizer_folder / "tokenizer_config.json").exists():
            captions = load_pictures(Path(config.data), max_samples=config.max_samples).captions
            train_tokenizer(
                captions,
                self.tokenizer_folder,
                vocabulary=config.unet.vocabulary,
                max_tokens=config.unet.max_tokens,
            )
        tokenizer = read_tokenizer(Path(config.output))
        self.data = DiffusionData(config, vae, tokenizer, device)
        self.num_samples = len(self.data.train.targets)
        torch.manual_seed(config.seed)
        channels, size = self.data.train.targets.shape[1], self.data.train.targets.shape[-1]
        unet = build_unet(config.unet, latent_channels=channels, latent_size=size).to(device)
        text_encoder = build_text_encoder(config.unet, tokenizer.eos_id + 1).to(device)
        self.models = Models(BaseUNet(unet), ReferenceUNet(unet), text_encoder, vae)
        self.unet = unet

    def modules(self) -> dict[str, nn.Module]:
        """The U-Net (both roles) and the text encoder."""
        return {"unet": self.unet, "text_encoder": self.models.text_encoder}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: everything."""
        parameters = [p for module in self.modules().values() for p in trainable(module)]
        return [{"params": parameters, "lr": self.config.optimizer.learning_rate}]

    def loss(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `diffusion_loss`."""
        return diffusion_loss(self.models, self.data, indices, generator)

    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """See `diffusion.validate`."""
        return validate(self.models, self.data, folder, step)

    def export(self, folder: Path) -> None:
        """Save a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler."""
        self.unet.save_pretrained(folder / "unet")
        self.models.vae.save_pretrained(folder / "vae")
        self.models.text_encoder.save_pretrained(folder / "text_encoder")
        (folder / "tokenizer").mkdir(parents=True)
        for file in self.tokenizer_folder.iterdir():
            (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
        prediction_type = self.config.diffusion.prediction_type
        write_json(folder / "scheduler/scheduler_config.json", scheduler_config(prediction_type))
