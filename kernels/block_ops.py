"""Operators of torch around attention: norms, GEGLU, ends of residual blocks. For inference.

As in `bootpig_rt.kernels.ops`: on CUDA they launch Triton kernels, elsewhere they run the eager
twins, and they have fakes. They do not differentiate; `bootpig_rt.kernels.choose` keeps them out of
training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bootpig_rt.kernels import checks, eager_ops
from bootpig_rt.kernels.launch import launches
from bootpig_rt.kernels.launch_blocks import (
    launch_geglu,
    launch_group_norm,
    launch_layer_norm,
    launch_residual_add,
)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    offset: Tensor | None = None,
) -> Tensor:
    """Group norm of pictures in channels-last, and SiLU behind it.

    Args:
        x: [B, C, h, w], float16, bfloat16 or float32, channels-last.
        weight: [C], in the dtype of x.
        bias: [C], likewise.
        groups: Divides C.
        eps: Added to the variance.
        silu: Apply it.
        offset: [B, C] or [1, C], likewise, added to x ahead of the norm.

    Returns:
        [B, C, h, w], channels-last.

    Raises:
        ParameterError: A tensor has the wrong type, device, shape or layout.
        BackendUnavailable: Triton is missing or too old.
    """
    checks.check_group_norm(x, weight, bias, groups, offset)
    return torch.ops.bootpig_rt.group_norm(  # type: ignore[no-any-return]
        x, weight, bias, groups, eps, silu, offset
    )


def add_layer_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """A residual sum, and the layer norm of it.

    Args:
        x: [..., C], float16, bfloat16 or float32, contiguous.
        change: Likewise, or None: nothing is added.
        weight: [C], in the dtype of x.
        bias: [C], likewise.
        eps: Added to the variance.

    Returns:
        x + change, which is x itself without a change, and its norm; each [..., C], contiguous.

    Raises:
        ParameterError: A tensor has the wrong type, device, shape or layout.
        BackendUnavailable: Triton is missing or too old.
    """
    checks.check_layer_norm(x, change, weight, bias)
    if change is None:
        return x, torch.ops.bootpig_rt.layer_norm(x, weight, bias, eps)
    found: tuple[Tensor, Tensor] = torch.ops.bootpig_rt.add_layer_norm(x, change, weight, bias, eps)
    return found


def geglu(x: Tensor) -> Tensor:
    """One half of the channels times the GELU of the other (Shazeer, arXiv 2002.05202).

    Args:
        x: [..., 2 * C], float16, bfloat16 or float32, contiguous.

    Returns:
        [..., C], contiguous.

    Raises:
        ParameterError: The tensor has the wrong type, shape or layout.
        BackendUnavailable: Triton is missing or too old.
    """
    checks.check_geglu(x)
    return torch.ops.bootpig_rt.geglu(x)  # type: ignore[no-any-return]


def residual_add(x: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    """The sum of two pictures in channels-last, and a number a channel.

    Args:
        x: [B, C, h, w], float16, bfloat16 or float32, channels-last.
        change: Likewise.
        bias: [C], in the dtype of x.

    Returns:
        [B, C, h, w], channels-last.

    Raises:
        ParameterError: A tensor has the wrong type, device, shape or layout.
        BackendUnavailable: Triton is missing or too old.
    """
    checks.check_residual_add(x, change, bias)
    return torch.ops.bootpig_rt.residual_add(x, change, bias)  # type: ignore[no-any-return]


@torch.library.custom_op("bootpig_rt::group_norm", mutates_args=())
def _group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    offset: Tensor | None,
) -> Tensor:
    checks.check_channels_last(x=x)
    checks.check_contiguous(weight=weight, bias=bias)
    run = launch_group_norm if launches(x) else eager_ops.group_norm
    return run(x, weight, bias, groups, eps, silu, offset)


@_group_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    offset: Tensor | None,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("bootpig_rt::add_layer_norm", mutates_args=())
def _add_layer_norm(
    x: Tensor, change: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    checks.check_contiguous(x=x, change=change, weight=weight, bias=bias)
    run = launch_layer_norm if launches(x) else eager_ops.add_layer_norm
    return run(x, change, weight, bias, eps)


@_add_layer_norm.register_fake
def _(x: Tensor, change: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("bootpig_rt::layer_norm", mutates_args=())
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    checks.check_contiguous(x=x, weight=weight, bias=bias)
    run = launch_layer_norm if launches(x) else eager_ops.add_layer_norm
    return run(x, None, weight, bias, eps)[1]


@_layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("bootpig_rt::geglu", mutates_args=())
def _geglu(x: Tensor) -> Tensor:
    checks.check_contiguous(x=x)
    return launch_geglu(x) if launches(x) else eager_ops.geglu(x)


@_geglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("bootpig_rt::residual_add", mutates_args=())
def _residual_add(x: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    checks.check_channels_last(x=x, change=change)
    checks.check_contiguous(bias=bias)
    run = launch_residual_add if launches(x) else eager_ops.residual_add
    return run(x, change, bias)


@_residual_add.register_fake
def _(x: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)
