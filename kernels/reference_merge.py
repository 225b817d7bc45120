"""Merge of several references as one Triton kernel, after the output projection.

With y = W o_self + b and change_r = W delta_r of one token, n_r = ||change_r||_2 over all channels:

    argmax   y + change_r of the largest n_r, the lowest slot where norms are equal
    softmax  y + sum_r softmax_r(n_r) change_r
    mean     y + mean_r(change_r)

over the slots that hold a reference. Norm, choice and sum are one pass: each change is read once,
and norms are float32 whatever type the changes have (a float16 sum of squares can overflow).

One program is one tile of tokens of one row, all channels. The eager twin is
`bootpig_rt.kernels.eager_ops.merge`.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

ARGMAX, SOFTMAX, MEAN = 0, 1, 2
MODE_OF_MERGE = {"argmax": ARGMAX, "softmax": SOFTMAX, "mean": MEAN}


@triton.jit(do_not_specialize=["num_slots", "num_tokens", "first_delta_row"])
def reference_merge_kernel(
    projected_ptr,  # [B, N, C], contiguous
    change_ptr,  # [B - first_delta_row, S, N, C], contiguous
    ref_of_row_ptr,  # int32 [B, S], contiguous
    out_ptr,  # [B, N, C], contiguous
    num_slots,  # S
    num_tokens,  # N
    first_delta_row,  # rows ahead of it are copied
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,  # CHANNELS rounded up to a power of two
    BLOCK_T: tl.constexpr,
    MODE: tl.constexpr,  # 0 argmax, 1 softmax, 2 mean
):
    """Grid: (ceil(N / BLOCK_T), B). See the module for what is computed."""
    row = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, BLOCK_C)
    is_inside = (token[:, None] < num_tokens) & (channel[None, :] < CHANNELS)
    within = token[:, None] * CHANNELS + channel[None, :]
    row_offset = row.to(tl.int64) * num_tokens * CHANNELS

    taken = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    largest = tl.full([BLOCK_T], -1.0, tl.float32)  # of the norms (squared for argmax)
    total = tl.zeros([BLOCK_T], tl.float32)
    if row >= first_delta_row:
        for slot in range(num_slots):
            ref = tl.load(ref_of_row_ptr + row * num_slots + slot)
            if ref != -1:
                place = ((row - first_delta_row).to(tl.int64) * num_slots + slot) * num_tokens
                change_at = change_ptr + place * CHANNELS + within
                change = tl.load(change_at, mask=is_inside, other=0.0).to(tl.float32)
                if MODE == 2:
                    taken += change
                    total += 1.0
                else:
                    squares = tl.sum(change * change, 1)
                    if MODE == 0:
                        is_better = squares > largest  # strictly: the lowest slot wins a tie
                        # NaN compares false; it must reach the output, not lose.
                        is_better = is_better | (squares != squares)
                        taken = tl.where(is_better[:, None], change, taken)
                        largest = tl.where(is_better, squares, largest)
                    else:
                        norm = tl.sqrt(squares)
                        higher = tl.maximum(largest, norm)
                        shrink = tl.exp2((largest - higher) * 1.4426950408889634)
                        weight = tl.exp2((norm - higher) * 1.4426950408889634)
                        taken = taken * shrink[:, None] + weight[:, None] * change
                        total = total * shrink + weight
                        largest = higher
        if MODE != 0:
            taken = taken / tl.where(total == 0.0, 1.0, total)[:, None]
    projected = tl.load(projected_ptr + row_offset + within, mask=is_inside, other=0.0)
    merged = projected.to(tl.float32) + taken
    tl.store(out_ptr + row_offset + within, merged.to(out_ptr.dtype.element_ty), mask=is_inside)
