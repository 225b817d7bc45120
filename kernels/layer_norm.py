r"""A residual sum and the layer norm behind it, as one Triton kernel.

    s = x + change,   y = (s - mean) / sqrt(var + eps) * weight + bias

mean and var are over the channels of a token. A transformer block needs both `s` and `y`; here the
tokens are read and written once. `s` is rounded to its type ahead of the norm, as it is where both
are computed by themselves. The eager twin is `bootpig_rt.kernels.eager_ops.add_layer_norm`.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def layer_norm_kernel(
    x_ptr,  # [N, C], contiguous
    change_ptr,  # [N, C], contiguous; not read without HAS_CHANGE
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    sum_ptr,  # [N, C], contiguous; not written without HAS_CHANGE
    out_ptr,  # [N, C], contiguous
    num_tokens,  # N
    eps,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,  # CHANNELS rounded up to a power of two
    BLOCK_T: tl.constexpr,  # tokens of a program
    HAS_CHANGE: tl.constexpr,
):
    """Grid: (ceil(N / BLOCK_T),)."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < CHANNELS
    inside = (token < num_tokens)[:, None] & is_channel[None, :]
    at = token[:, None] * CHANNELS + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_CHANGE:
        x += tl.load(change_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, axis=1) / CHANNELS
    away = tl.where(is_channel[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(away * away, axis=1) / CHANNELS
    weight = tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    y = away / tl.sqrt(variance + eps)[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
