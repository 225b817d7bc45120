r"""Group norm of a picture in channels-last, and SiLU behind it, as Triton kernels.

torch's own kernel takes channels first: in a network in channels-last a picture is turned ahead of
every norm and back ahead of the convolution behind it. Here it is read as it lies:

    y = silu((x + offset - mean) / sqrt(var + eps) * weight + bias)

mean and var are over a group of a row; `offset` is one number a row and channel, such as the time
embedding of a residual block and the bias of the convolution ahead of it, so that they cost no pass
over the picture. The eager twin is `bootpig_rt.kernels.eager_ops.group_norm`.

A small picture is one launch: a program is one group of one row, and goes over its pixels twice. In
a larger one that leaves too much of a GPU idle and reads memory in narrow strips, so there are
three launches: sums of many pixels and 64 channels side by side, then from these one factor and one
summand a channel, then those applied. Sums are float32, of differences to the first pixel, so that
a large mean costs no digits.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_pixels", "offset_stride"])
def group_norm_kernel(
    x_ptr,  # [B, P, C], contiguous: a picture in channels-last with P pixels
    offset_ptr,  # [B, C], channels side by side; not read without HAS_OFFSET
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    out_ptr,  # [B, P, C], contiguous
    num_pixels,  # P
    num_channels,  # C
    offset_stride,  # of a row of `offset`, 0 where all rows share it
    eps,
    GROUP: tl.constexpr,  # channels of a group
    BLOCK_C: tl.constexpr,  # GROUP rounded up to a power of two
    BLOCK_P: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SILU: tl.constexpr,
):
    """All of a small picture. Grid: (groups, B)."""
    group = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_C)
    pixel = tl.arange(0, BLOCK_P)
    is_channel = lane < GROUP
    channel = group * GROUP + lane
    first = row * num_pixels * num_channels + group * GROUP

    origin = tl.load(x_ptr + first).to(tl.float32)
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + row * offset_stride + channel, mask=is_channel, other=0.0)
        offset = offset.to(tl.float32) - origin
    else:
        offset = tl.zeros([BLOCK_C], tl.float32) - origin
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, num_pixels, BLOCK_P):
        inside = ((start + pixel) < num_pixels)[:, None] & is_channel[None, :]
        at = first + (start + pixel)[:, None] * num_channels + lane[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x + offset[None, :], 0.0)
        total += x
        squares += x * x
    count = num_pixels * GROUP
    mean = tl.sum(total) / count
    variance = tl.maximum(tl.sum(squares) / count - mean * mean, 0.0)
    scale = tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(variance + eps)

    for start in range(0, num_pixels, BLOCK_P):
        inside = ((start + pixel) < num_pixels)[:, None] & is_channel[None, :]
        at = first + (start + pixel)[:, None] * num_channels + lane[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = (x + offset[None, :] - mean) * scale[None, :] + shift[None, :]
        if HAS_SILU:
            y = y * tl.sigmoid(y)
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_pixels", "pixels_of_chunk"])
def group_norm_sums_kernel(
    x_ptr,  # [B, P, C], contiguous
    sums_ptr,  # float32 [B, chunks, 2, C], contiguous: sums of differences, and of their squares
    num_pixels,  # P
    num_channels,  # C
    pixels_of_chunk,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums over a chunk of pixels, for each channel. Grid: (chunks, ceil(C / BLOCK_C), B)."""
    chunk = tl.program_id(0)
    row = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = tl.arange(0, BLOCK_P)
    is_channel = channel < num_channels
    first = row * num_pixels * num_channels
    origin = tl.load(x_ptr + first + channel, mask=is_channel, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    begin = chunk * pixels_of_chunk
    end = tl.minimum(begin + pixels_of_chunk, num_pixels)
    for start in range(begin, end, BLOCK_P):
        inside = ((start + pixel) < end)[:, None] & is_channel[None, :]
        at = first + (start + pixel).to(tl.int64)[:, None] * num_channels + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin[None, :], 0.0)
        total += x
        squares += x * x
    at = ((row * tl.num_programs(0) + chunk) * 2) * num_channels + channel
    tl.store(sums_ptr + at, tl.sum(total, axis=0), mask=is_channel)
    tl.store(sums_ptr + at + num_channels, tl.sum(squares, axis=0), mask=is_channel)


@triton.jit(do_not_specialize=["num_pixels", "num_chunks", "offset_stride"])
def group_norm_scales_kernel(
    x_ptr,  # [B, P, C], contiguous
    offset_ptr,  # [B, C], channels side by side; not read without HAS_OFFSET
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    sums_ptr,  # float32 [B, chunks, 2, C], contiguous
    scales_ptr,  # float32 [B, 2, C], contiguous: factor, summand
    num_pixels,  # P
    num_channels,  # C
    num_chunks,
    offset_stride,  # of a row of `offset`, 0 where all rows share it
    eps,
    GROUP: tl.constexpr,  # channels of a group
    BLOCK_C: tl.constexpr,  # GROUP rounded up to a power of two
    BLOCK_K: tl.constexpr,  # chunks that are taken in at once
    HAS_OFFSET: tl.constexpr,
):
    """A group's factor and summand for each channel. Grid: (groups, B)."""
    row = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK_C)
    channel = tl.program_id(0) * GROUP + lane
    is_channel = lane < GROUP
    total = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    for start in range(0, num_chunks, BLOCK_K):
        chunk = start + tl.arange(0, BLOCK_K)
        inside = (chunk < num_chunks)[:, None] & is_channel[None, :]
        at = ((row * num_chunks + chunk) * 2)[:, None] * num_channels + channel[None, :]
        total += tl.load(sums_ptr + at, mask=inside, other=0.0)
        squares += tl.load(sums_ptr + at + num_channels, mask=inside, other=0.0)
    away = tl.sum(total, axis=0) / num_pixels  # of a channel's mean from its first pixel
    spread = tl.sum(squares, axis=0) / num_pixels - away * away
    first = row * num_pixels * num_channels
    mean_of_channel = away + tl.load(x_ptr + first + channel, mask=is_channel, other=0.0).to(
        tl.float32
    )
    offset = tl.zeros([BLOCK_C], tl.float32)
    if HAS_OFFSET:
        at = row * offset_stride + channel
        offset = tl.load(offset_ptr + at, mask=is_channel, other=0.0).to(tl.float32)
    mean_of_channel += offset
    mean = tl.sum(tl.where(is_channel, mean_of_channel, 0.0)) / GROUP
    between = mean_of_channel - mean
    within = tl.maximum(spread, 0.0) + between * between
    variance = tl.sum(tl.where(is_channel, within, 0.0)) / GROUP
    scale = tl.load(weight_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(variance + eps)
    at = row * 2 * num_channels + channel
    tl.store(scales_ptr + at, scale, mask=is_channel)
    tl.store(scales_ptr + at + num_channels, shift + (offset - mean) * scale, mask=is_channel)


@triton.jit(do_not_specialize=["num_pixels"])
def group_norm_apply_kernel(
    x_ptr,  # [B, P, C], contiguous
    scales_ptr,  # float32 [B, 2, C], contiguous: factor, summand
    out_ptr,  # [B, P, C], contiguous
    num_pixels,  # P
    num_channels,  # C
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HAS_SILU: tl.constexpr,
):
    """Factor, summand, SiLU. Grid: (ceil(P / BLOCK_P), ceil(C / BLOCK_C), B)."""
    row = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    is_channel = channel < num_channels
    at = row * 2 * num_channels + channel
    scale = tl.load(scales_ptr + at, mask=is_channel, other=0.0)
    shift = tl.load(scales_ptr + at + num_channels, mask=is_channel, other=0.0)
    inside = (pixel < num_pixels)[:, None] & is_channel[None, :]
    at = (row * num_pixels + pixel[:, None]) * num_channels + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = x * scale[None, :] + shift[None, :]
    if HAS_SILU:
        y = y * tl.sigmoid(y)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
