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
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.models.load import Pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.config import TrainConfig, UNetConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.growth import grow
from bootpig_rt.training.stage import trainable
from bootpig_rt.training.stages.diffusion import DiffusionStage
from bootpig_rt.training.start import with_settings


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """Return the noise schedule of the small world, in diffusers' form.

    Stable Diffusion's betas, rescaled to end in pure noise and used with trailing spacing, as Lin
    et al. (2023) advise: scenes at night and on snow need means far from grey.
    """
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }


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


class BaseStage(DiffusionStage):
    """U-Net and text encoder from nothing; the VAE is frozen. See `stage.Stage`.

    The table [unet] says what is built. `vocabulary` is the size of the tokenizer that `data` uses;
    `small` the pair whose weights it begins with, None for random ones.
    """

    def __init__(
        self,
        config: TrainConfig,
        vae: Any,
        tokenizer_folder: Path,
        vocabulary: int,
        data: DiffusionData,
        small: Pair | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        channels, size, _ = data.train.shape
        unet = build_unet(config.unet, latent_channels=channels, latent_size=size).to(data.device)
        settings = PairConfig(
            name=Path(config.output).name,
            sample_size_px=data.train.sizing.reference_px,
            reference_timestep="clean",
            subject_share=REFERENCE_LENGTH,
            image_guidance_scale=2.0,
            text_guidance_scale=2.0,
            shared_unet=True,
        )
        pair = Pair(
            base=BaseUNet(unet),
            reference=ReferenceUNet(unet),
            vae=vae,
            text_encoder=build_text_encoder(config.unet, vocabulary).to(data.device),
            tokenizer_folder=tokenizer_folder,
            scheduler=scheduler_config(config.unet.prediction_type),
            config=with_settings(settings, config.pair),
            fingerprint="",
        )
        if small is not None:
            grow(pair, tokenizer_folder, small, data.train)
        super().__init__(config, pair, data)

    def modules(self) -> dict[str, nn.Module]:
        """The U-Net (both roles) and the text encoder."""
        return {"unet": self.pair.base.unet, "text_encoder": self.pair.text_encoder}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: everything."""
        parameters = [p for module in self.modules().values() for p in trainable(module)]
        return [{"params": parameters, "lr": self.config.optimizer.learning_rate}]
