"""A pair of Stable Diffusion 2.1's size with random weights, made on the device: no files."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.models.load import Pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

TEXT_TOKENS = 77
GUIDANCE = (4.0, 6.5)
"""Weights of image and text guidance: three rows a picture."""

# Random keys and queries are nearly orthogonal: attention would average over all tokens, and no
# comparison could tell whether a reference was read. Larger queries make it choose.
_QUERY_FACTOR = 6.0

_SD21_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "norm_num_groups": 32,
    "use_linear_projection": True,
}
_SD21_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
}
_SD21_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": TEXT_TOKENS,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
_TOY_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "attention_head_dim": (1, 2),
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
_TOY_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
_TOY_TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": TEXT_TOKENS,
    "bos_token_id": 98,
    "eos_token_id": 99,
}


def make_pair(device: str, dtype: torch.dtype, *, size_px: int, is_toy: bool) -> Pair:
    """A pair of random weights in evaluation mode.

    The autoencoder is in float32, as the torch backend keeps one whose configuration has
    `force_upcast`, which Stable Diffusion's has by default.

    Args:
        device: Where it is made.
        dtype: Of the U-Nets and the text encoder.
        size_px: Side of its pictures.
        is_toy: Small enough for a CPU.
    """
    unet, vae, text = (
        (_TOY_UNET, _TOY_VAE, _TOY_TEXT) if is_toy else (_SD21_UNET, _SD21_VAE, _SD21_TEXT)
    )
    levels = len(vae["block_out_channels"])
    forked = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=forked), torch.device(device):
        torch.manual_seed(0)
        base, reference = (UNet2DConditionModel(**unet) for _ in range(2))
        autoencoder = AutoencoderKL(
            **vae,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
        encoder = CLIPTextModel(CLIPTextConfig(**text))
    for module in (base, reference, encoder):
        nn.Module.to(module, dtype=dtype)  # diffusers' own `to` warns, of no module at all
    for module in (base, reference, encoder, autoencoder):
        module.eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "attn1.to_q" in name:
                parameter.mul_(_QUERY_FACTOR)
    return Pair(
        base=BaseUNet(base),
        reference=ReferenceUNet(reference),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer_folder=Path(),  # prompts are token ids here
        scheduler={
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
        config=PairConfig(
            name="random",
            sample_size_px=size_px,
            default_solver="unipc",
            image_guidance_scale=GUIDANCE[0],
            text_guidance_scale=GUIDANCE[1],
        ),
        fingerprint="random",
    )


def copy_unets(pair: Pair, memory_format: torch.memory_format) -> Pair:
    """The same pair with U-Nets and autoencoder of its own, in another layout of memory."""
    base, reference, vae = (
        copy.deepcopy(module) for module in (pair.base.unet, pair.reference.unet, pair.vae)
    )
    for module in (base, reference, vae):
        nn.Module.to(module, memory_format=memory_format)  # type: ignore[call-overload]
    return dataclasses.replace(
        pair, base=BaseUNet(base), reference=ReferenceUNet(reference), vae=vae
    )


def pair_bytes(pair: Pair) -> int:
    """Bytes of all weights."""
    modules: tuple[Any, ...] = (pair.base, pair.reference, pair.vae, pair.text_encoder)
    return sum(p.nbytes for module in modules for p in module.parameters())
