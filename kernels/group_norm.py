r"""Group norm of a picture in channels-last, and SiLU behind it, as one Triton kernel.

torch's own kernel takes channels first: in a network in channels-last a picture is turned ahead of
every norm and back ahead of the convolution behind it. Here it is read as it lies:

    y = silu((x - mean) / sqrt(var + eps) * weight + bias),   mean and var over a group of a row

One program is one group of one row. It goes over the pixels twice, and the second time they are in
the cache. Sums are float32, of differences to the group's first number, so that a large mean costs
no digits. The eager twin is `bootpig_rt.kernels.eager_ops.group_norm`.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_pixels"])
def group_norm_kernel(
    x_ptr,  # [B, P, C], contiguous: a picture in channels-last with P pixels
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    out_ptr,  # [B, P, C], contiguous
    num_pixels,  # P
    num_channels,  # C
    eps,
    GROUP: tl.constexpr,  # channels of a group
    BLOCK_C: tl.constexpr,  # GROUP rounded up to a power of two
    BLOCK_P: tl.constexpr,
    HAS_SILU: tl.constexpr,
):
    """Grid: (groups, B)."""
    group = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_C)
    pixel = tl.arange(0, BLOCK_P)
    is_channel = lane < GROUP
    first = row * num_pixels * num_channels + group * GROUP

    origin = tl.load(x_ptr + first).to(tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, num_pixels, BLOCK_P):
        inside = ((start + pixel) < num_pixels)[:, None] & is_channel[None, :]
        at = first + (start + pixel)[:, None] * num_channels + lane[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin, 0.0)
        total += x
        squares += x * x
    count = num_pixels * GROUP
    mean = tl.sum(total) / count
    variance = tl.maximum(tl.sum(squares) / count - mean * mean, 0.0)
    scale = tl.load(weight_ptr + group * GROUP + lane, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + group * GROUP + lane, mask=is_channel, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(variance + eps)

    for start in range(0, num_pixels, BLOCK_P):
        inside = ((start + pixel) < num_pixels)[:, None] & is_channel[None, :]
        at = first + (start + pixel)[:, None] * num_channels + lane[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = (x - origin - mean) * scale[None, :] + shift[None, :]
        if HAS_SILU:
            y = y * tl.sigmoid(y)
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
