"""Group norms of the U-Nets: one fused kernel where it runs, the modules themselves elsewhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bootpig_rt.kernels import choose, ops


def group_norm(norm: Any, x: Tensor, *, silu: bool) -> Tensor:
    """A norm of a U-Net, with SiLU behind it or not.

    Args:
        norm: `torch.nn.GroupNorm`, or a module that takes its place.
        x: [B, C, h, w].
        silu: Apply it.

    Returns:
        [B, C, h, w].
    """
    if type(norm) is torch.nn.GroupNorm and choose.fuses_norm(x):
        return ops.group_norm(
            x, norm.weight, norm.bias, groups=norm.num_groups, eps=norm.eps, silu=silu
        )
    normed: Tensor = norm(x)
    return F.silu(normed) if silu else normed


def residual_block(block: Any, x: Tensor, temb: Tensor) -> Tensor:
    """A `ResnetBlock2D` of diffusers; spelled out where its norms are fused.

    Args:
        block: The block, in evaluation mode; one of those blocks that
            `bootpig_rt.models.unet_config` lets through, which change no size.
        x: [B, C, h, w].
        temb: [B, E], the embedding of the timesteps.

    Returns:
        [B, C', h, w].
    """
    if not choose.fuses_norm(x):
        out: Tensor = block(x, temb)
        return out
    hidden = block.conv1(group_norm(block.norm1, x, silu=True))
    time = block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))
    hidden = hidden + time[:, :, None, None]
    hidden = block.conv2(group_norm(block.norm2, hidden, silu=True))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    joined: Tensor = x + hidden
    if block.output_scale_factor != 1.0:
        joined = joined / block.output_scale_factor
    return joined


def pick_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor, int64 [B]; pictures in channels-last stay so, which torch does not see to.

    Args:
        x: [N, ...].
        index: Rows to take.

    Returns:
        [B, ...].
    """
    if x.dim() == 4 and choose.fuses_norm(x):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)
