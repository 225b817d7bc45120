"""Around attention: norms, GEGLU, ends of residual blocks. For inference.

As in `bootpig_rt.kernels.ops`, tensors on CUDA are computed by Triton kernels, others by the eager
twins. They do not differentiate and are not seen by a trace: `bootpig_rt.kernels.choose` keeps them
out of both.
"""

from __future__ import annotations

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
    run = launch_group_norm if launches(x) else eager_ops.group_norm
    return run(x, weight, bias, groups, eps, silu, offset)


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
    run = launch_layer_norm if launches(x) else eager_ops.add_layer_norm
    return run(x, change, weight, bias, eps)


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
    return launch_geglu(x) if launches(x) else eager_ops.geglu(x)


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
    run = launch_residual_add if launches(x) else eager_ops.residual_add
    return run(x, change, bias)
