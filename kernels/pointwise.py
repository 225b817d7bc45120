r"""Element by element, in one pass each: GEGLU of a feed-forward, and the end of a residual block.

    geglu:         y = a * gelu(b),   [a, b] = x,   gelu(b) = b * (1 + erf(b / sqrt(2))) / 2
    residual_add:  y = x + change + bias

torch takes two passes for each: one for gelu and one for the product; one for the bias of the
convolution ahead of a sum and one for the sum. Computed in float32. The eager twins are in
`bootpig_rt.kernels.eager_ops`.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens"])
def geglu_kernel(
    x_ptr,  # [N, 2 * C], contiguous
    out_ptr,  # [N, C], contiguous
    num_tokens,  # N
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (ceil(N * C / BLOCK),)."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = number // CHANNELS
    inside = token < num_tokens
    at = token * CHANNELS + number  # the first half of the token's row
    linear = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + at + CHANNELS, mask=inside, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + number, (linear * gelu).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_pixels"])
def residual_add_kernel(
    x_ptr,  # [N, C], contiguous: pixels of pictures in channels-last
    change_ptr,  # [N, C], contiguous
    bias_ptr,  # [C]
    out_ptr,  # [N, C], contiguous
    num_pixels,  # N
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (ceil(N * C / BLOCK),)."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pixel = number // CHANNELS
    inside = pixel < num_pixels
    x = tl.load(x_ptr + number, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(change_ptr + number, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + number - pixel * CHANNELS, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + number, (x + change + bias).to(out_ptr.dtype.element_ty), mask=inside)
