"""Launches of the Triton kernels around attention: norms, GEGLU, ends of residual blocks.

As in `bootpig_rt.kernels.launch`, arguments are not checked: `bootpig_rt.kernels.block_ops` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.launch import find_kernel, run_kernel


def launch_group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    offset: Tensor | None = None,
    *,
    most_pixels: int = tiles.MOST_PIXELS_OF_ONE_LAUNCH,
) -> Tensor:
    """Run the kernels of `bootpig_rt.kernels.group_norm`; arguments as for the eager twin.

    Pictures of at most `most_pixels` take one launch, larger ones three.

    Raises:
        BackendUnavailable: No Triton, or a driver that is too old.
    """
    rows, channels, height, width = x.shape
    pixels, of_group = height * width, channels // groups
    out = torch.empty_like(x)  # keeps the layout
    given = x if offset is None else offset
    offset_stride = 0 if offset is None or offset.shape[0] == 1 else offset.stride(0)
    group = {
        "GROUP": of_group,
        "BLOCK_C": tiles.padded(of_group),
        "HAS_OFFSET": offset is not None,
    }
    if pixels <= most_pixels:
        _run(
            "group_norm", (groups, rows),
            x, given, weight, bias, out, pixels, channels, offset_stride, eps,
            **group, BLOCK_P=tiles.group_norm_pixels(of_group), HAS_SILU=silu,
        )  # fmt: skip
        return out
    chunk = tiles.pixels_of_chunk(pixels)
    chunks = -(-pixels // chunk)
    blocks = -(-channels // tiles.CHANNELS_OF_BLOCK)
    cut = {"BLOCK_C": tiles.CHANNELS_OF_BLOCK, "BLOCK_P": tiles.PIXELS_OF_BLOCK}
    sums = torch.empty(rows, chunks, 2, channels, dtype=torch.float32, device=x.device)
    scales = torch.empty(rows, 2, channels, dtype=torch.float32, device=x.device)
    _run(
        "group_norm_sums", (chunks, blocks, rows),
        x, sums, pixels, channels, chunk, **cut,
    )  # fmt: skip
    _run(
        "group_norm_scales", (groups, rows),
        x, given, weight, bias, sums, scales, pixels, channels, chunks, offset_stride, eps,
        **group, BLOCK_K=tiles.CHUNKS_AT_ONCE,
    )  # fmt: skip
    _run(
        "group_norm_apply", (-(-pixels // tiles.PIXELS_OF_BLOCK), blocks, rows),
        x, scales, out, pixels, channels, **cut, HAS_SILU=silu,
    )  # fmt: skip
    return out


def launch_layer_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Run `layer_norm_kernel`; arguments as for `bootpig_rt.kernels.eager_ops.add_layer_norm`.

    Raises:
        BackendUnavailable: No Triton, or a driver that is too old.
    """
    channels = x.shape[-1]
    tokens = x.numel() // channels
    out = torch.empty_like(x)
    total = x if change is None else torch.empty_like(x)
    block = tiles.tokens_of_block(channels)
    _run(
        "layer_norm", (-(-tokens // block),),
        x, x if change is None else change, weight, bias, total, out, tokens, eps,
        CHANNELS=channels, BLOCK_C=tiles.padded(channels), BLOCK_T=block,
        HAS_CHANGE=change is not None,
    )  # fmt: skip
    return total, out


def launch_geglu(x: Tensor) -> Tensor:
    """Run `geglu_kernel`; arguments as for `bootpig_rt.kernels.eager_ops.geglu`.

    Raises:
        BackendUnavailable: No Triton, or a driver that is too old.
    """
    channels = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], channels, dtype=x.dtype, device=x.device)
    _run(
        "geglu", (-(-out.numel() // tiles.NUMBERS_OF_BLOCK),),
        x, out, out.numel() // channels, CHANNELS=channels, BLOCK=tiles.NUMBERS_OF_BLOCK,
    )  # fmt: skip
    return out


def launch_residual_add(x: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    """Run `residual_add_kernel`; arguments as for `bootpig_rt.kernels.eager_ops.residual_add`.

    Raises:
        BackendUnavailable: No Triton, or a driver that is too old.
    """
    out = torch.empty_like(x)  # keeps the layout
    channels = x.shape[1]
    _run(
        "residual_add", (-(-out.numel() // tiles.NUMBERS_OF_BLOCK),),
        x, change, bias, out, out.numel() // channels,
        CHANNELS=channels, BLOCK=tiles.NUMBERS_OF_BLOCK,
    )  # fmt: skip
    return out


def _run(name: str, grid: tuple[int, ...], x: Tensor, *arguments: Any, **constants: Any) -> None:
    options = {"num_warps": tiles.BLOCK_WARPS[name], "enable_fp_fusion": True}
    run_kernel(find_kernel(name), grid, x, x, *arguments, **constants, **options)
