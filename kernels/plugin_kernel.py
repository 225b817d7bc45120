"""The joint attention kernel in the form that a TensorRT plan can hold.

A quick-deploy plugin passes the pointers of all inputs, then whole numbers, then the pointers of
all outputs; nothing else. So shapes come as numbers, strides follow from them (its tensors are
dense), the scale is baked in, and the reference table is the flat one of the ONNX operator
`bootpig_rt::ReferenceAttention`, whose indices already count the step.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from bootpig_rt.kernels.reference_attention import attend


@triton.jit
def reference_attention_plugin_kernel(
    q_ptr,  # [B, H, N, D], dense, and so are k, v and the output
    k_ptr,
    v_ptr,
    ref_k_ptr,  # [R, H, M, D]
    ref_v_ptr,
    ref_of_row_ptr,  # int64 [E, S]: what the last E rows read, -1 for none
    num_rows,  # B
    num_heads,  # H
    num_tokens,  # N
    num_references,  # R
    num_ref_tokens,  # M
    num_ref_rows,  # E
    num_slots,  # S
    out_ptr,
    SCALE: tl.constexpr,  # log2(e) times the operator's scale
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid: (ceil(N / BLOCK_M), H, B). Token counts are masked: a plan may take a range."""
    head = tl.program_id(1)
    row = num_rows - 1 - tl.program_id(2)  # the rows that read references go first
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_D)
    own = (row.to(tl.int64) * num_heads + head) * num_tokens * HEAD_DIM
    tile = token[:, None] * HEAD_DIM + channel[None, :]
    is_query = (token[:, None] < num_tokens) & (channel < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + own + tile, mask=is_query, other=0.0)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc, top, total = attend(
        q,
        k_ptr + own,
        v_ptr + own,
        HEAD_DIM,
        HEAD_DIM,
        row,
        head,
        num_tokens,
        SCALE,
        acc,
        top,
        total,
        HEAD_DIM=HEAD_DIM,
        BLOCK_D=BLOCK_D,
        BLOCK_N=BLOCK_N,
        IS_EVEN=False,
        PRECISION=PRECISION,
        WIDEN=WIDEN,
        USES_TMA=False,
    )
    ref_row = row - (num_rows - num_ref_rows)
    for slot in range(tl.where(ref_row >= 0, num_slots, 0)):
        ref = tl.load(ref_of_row_ptr + ref_row * num_slots + slot)
        is_ref = (ref >= 0) & (ref < num_references)
        offset = (tl.where(is_ref, ref, 0) * num_heads + head) * num_ref_tokens * HEAD_DIM
        acc, top, total = attend(
            q,
            ref_k_ptr + offset,
            ref_v_ptr + offset,
            HEAD_DIM,
            HEAD_DIM,
            row,
            head,
            tl.where(is_ref, num_ref_tokens, 0),
            SCALE,
            acc,
            top,
            total,
            HEAD_DIM=HEAD_DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            IS_EVEN=False,
            PRECISION=PRECISION,
            WIDEN=WIDEN,
            USES_TMA=False,
        )
        # As in the other kernel: an index outside the table is not followed, the row becomes NaN.
        total = tl.where((ref != -1) & (is_ref == 0), float("nan"), total)
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + own + tile, out, mask=is_query)
