"""Blocks of the U-Nets and the autoencoder: fused kernels where they run, else the modules.

`bootpig_rt.kernels.choose` decides. Where modules are spelled out here they are in evaluation mode,
so their dropouts do nothing.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from bootpig_rt.kernels import block_ops, choose


def group_norm(norm: Any, x: Tensor, *, silu: bool, offset: Tensor | None = None) -> Tensor:
    """A norm of pictures, with SiLU behind it or not.

    Args:
        norm: `torch.nn.GroupNorm`, or a module that takes its place.
        x: [B, C, h, w].
        silu: Apply it.
        offset: [B, C] or [1, C], added to x ahead of the norm.

    Returns:
        [B, C, h, w].
    """
    if type(norm) is nn.GroupNorm and choose.fuses_picture(x):
        return block_ops.group_norm(
            x,
            norm.weight,
            norm.bias,
            groups=norm.num_groups,
            eps=norm.eps,
            silu=silu,
            offset=offset,
        )
    normed: Tensor = norm(x if offset is None else x + offset[:, :, None, None])
    return F.silu(normed) if silu else normed


def residual_block(block: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    """A `ResnetBlock2D` of diffusers; spelled out where its parts are fused.

    Biases of its convolutions, for which torch takes a pass each, and the embedding of the
    timesteps go into the norm and the sum behind them.

    Args:
        block: The block; one of those that `bootpig_rt.models.unet_config` lets through, which
            change no size, or of an autoencoder.
        x: [B, C, h, w].
        temb: [B, E], the embedding of the timesteps; None in an autoencoder.

    Returns:
        [B, C', h, w].
    """
    if not choose.fuses_picture(x) or not _is_plain(block):
        out: Tensor = block(x, temb)
        return out
    hidden = _without_bias(block.conv1, group_norm(block.norm1, x, silu=True))
    offset = block.conv1.bias.unsqueeze(0)
    if temb is not None:
        offset = offset + time_offset(block, temb)
    hidden = group_norm(block.norm2, hidden, silu=True, offset=offset)
    hidden, bias = _without_bias(block.conv2, hidden), block.conv2.bias
    if block.conv_shortcut is not None:
        x, bias = _without_bias(block.conv_shortcut, x), bias + block.conv_shortcut.bias
    joined = block_ops.residual_add(x, hidden, bias)
    return joined if block.output_scale_factor == 1.0 else joined / block.output_scale_factor


def time_offset(block: Any, temb: Tensor) -> Tensor:
    """[B, E] -> [B, C], what the timestep adds to a residual block.

    A part of one product of all blocks where `bootpig_rt.models.joined` joined the weights.
    """
    joined = getattr(block, "joined_times", None)
    if joined is not None:
        times, rows = joined
        part: Tensor = times.part(temb, rows)
        return part
    offset: Tensor = block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))
    return offset


def _is_plain(block: Any) -> bool:
    """Convolutions with a bias, as diffusers makes them; not modules that took their place."""
    convolutions = [block.conv1, block.conv2]
    if block.conv_shortcut is not None:
        convolutions.append(block.conv_shortcut)
    return all(type(each) is nn.Conv2d and each.bias is not None for each in convolutions)


def _without_bias(convolution: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)


def add_layer_norm(norm: Any, tokens: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor]:
    """A residual sum and the norm behind it.

    Args:
        norm: `torch.nn.LayerNorm`, or a module that takes its place.
        tokens: [B, N, C].
        change: [B, N, C], added to the tokens; None: nothing is.

    Returns:
        The sum and its norm, each [B, N, C].
    """
    if type(norm) is nn.LayerNorm and choose.fuses_blocks(tokens):
        tokens = tokens.contiguous()
        change = None if change is None else change.contiguous()
        return block_ops.add_layer_norm(tokens, change, norm.weight, norm.bias, eps=norm.eps)
    total = tokens if change is None else tokens + change
    normed: Tensor = norm(total)
    return total, normed


def feed_forward(ff: Any, tokens: Tensor) -> Tensor:
    """A `FeedForward` of diffusers.

    Args:
        ff: The module.
        tokens: [B, N, C].

    Returns:
        [B, N, C].
    """
    if choose.fuses_blocks(tokens) and type(ff.net[0]) is GEGLU:
        fed: Tensor = ff.net[2](block_ops.geglu(ff.net[0].proj(tokens)))
        return fed
    plain: Tensor = ff(tokens)
    return plain


def pick_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, int64 [B]; pictures in channels-last stay so, which torch does not see to.

    Args:
        x: [N, ...].
        index: Rows to take.

    Returns:
        [B, ...].
    """
    if x.dim() == 4 and choose.fuses_picture(x):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)
