"""The autoencoder: pictures to latents and back, with fused blocks where they run.

An explicit walk as in `bootpig_rt.models.unet`, for the kind of autoencoder that Stable Diffusion
has. Other kinds run as they are, and so does this one on a CPU and in an export.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from torch import Tensor, nn

from bootpig_rt.kernels import choose
from bootpig_rt.models.blocks import group_norm, residual_block
from bootpig_rt.models.latent_scale import mean_latents


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """The mean of the latents' distribution, not scaled.

    Args:
        vae: Any kind of autoencoder in evaluation mode.
        pixels: [N, 3, H, W] in [-1, 1], in the type of the weights.

    Returns:
        [N, C, h, w].
    """
    encoder = vae.encoder
    if not _is_walked(vae, encoder, "down_blocks", DownEncoderBlock2D):
        return mean_latents(vae, pixels)
    x = encoder.conv_in(pixels.contiguous(memory_format=torch.channels_last))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = residual_block(resnet, x, None)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
    x = _middle(encoder.mid_block, x)
    moments = encoder.conv_out(group_norm(encoder.conv_norm_out, x, silu=True))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    half: Tensor = moments.chunk(2, dim=1)[0]
    return half


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels of latents.

    Args:
        vae: Any kind of autoencoder in evaluation mode.
        latents: [N, C, h, w], not scaled, in the type of the weights.

    Returns:
        [N, 3, H, W], about [-1, 1].
    """
    decoder = vae.decoder
    if not _is_walked(vae, decoder, "up_blocks", UpDecoderBlock2D):
        pixels: Tensor = vae.decode(latents).sample
        return pixels
    x = latents.contiguous(memory_format=torch.channels_last)
    if vae.post_quant_conv is not None:
        x = vae.post_quant_conv(x)
    x = _middle(decoder.mid_block, decoder.conv_in(x))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = residual_block(resnet, x, None)
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    drawn: Tensor = decoder.conv_out(group_norm(decoder.conv_norm_out, x, silu=True))
    return drawn


def _middle(block: Any, x: Tensor) -> Tensor:
    x = residual_block(block.resnets[0], x, None)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = attention(x)
        x = residual_block(resnet, x, None)
    return x


def _is_walked(vae: Any, half: Any, blocks: str, kind: type[nn.Module]) -> bool:
    """Its blocks are those of the walk, and weights in channels-last make pictures so."""
    return (
        isinstance(vae, AutoencoderKL)
        and choose.fuses_picture(half.conv_in.weight)
        and all(type(block) is kind for block in getattr(half, blocks))
        and type(half.conv_norm_out) is nn.GroupNorm
        and isinstance(half.mid_block.resnets[0].nonlinearity, nn.SiLU)
    )
