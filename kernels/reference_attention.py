r"""Reference self-attention as one Triton kernel: own tokens first, then on into the references.

With q, k, v of a row's own tokens, k_r, v_r of the reference in slot r and d the head dim:

    joint     o       = softmax(q [k; k_1; ...; k_S]^T / sqrt(d)) [v; v_1; ...; v_S]
    separate  o_self  = softmax(q k^T / sqrt(d)) v
              delta_r = w_r (o_r - o_self),   o_r = softmax(q k_r^T / sqrt(d)) v_r
              w_r     = 2^lse_r / (2^lse_self + 2^lse_r)

so that o_self + delta_r is the attention to own tokens and reference r together. With one reference
`joint` is all there is to do; several are merged after the output projection, which needs
`separate`. Every reference starts with a fresh state there: one accumulator is live at a time, and
o_self is read back from memory (the tile is in the cache). Keeping it in registers spills.

One program is one (query tile, head, row). Nothing is joined or repeated in memory: a program
follows `ref_of_row` and `step` to its keys, both on the device, so one captured graph serves every
step. Slots that hold -1 have no tokens. An index outside the table is never followed: the row
becomes NaN, which the runtime reports (the checks ahead of the launch give the better message).
Scores, softmax and accumulators are float32. The eager twin is `bootpig_rt.kernels.eager_ops`.

The online softmax follows Milakov and Gimelshein (arXiv 1805.02867) and FlashAttention-2
(arXiv 2307.08691); the merge by log-sum-exp is the one of split attention.
"""

# Kernels are Triton's language, not Python: their parameters have no types here.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    q,  # [BLOCK_M, BLOCK_D], scaled by nothing
    k_from,  # keys of one row or reference and one head: [num_keys, HEAD_DIM], or a descriptor
    v_from,
    k_stride,  # elements between two keys; not read with descriptors
    v_stride,
    block,  # of the descriptors: row, or entry and reference, and head; not read with pointers
    head,
    num_keys,
    scale,  # log2(e) / sqrt(d): the softmax is computed in base 2
    acc,  # [BLOCK_M, BLOCK_D] float32: the state of the online softmax
    top,  # [BLOCK_M] float32, largest score so far
    total,  # [BLOCK_M] float32, sum of 2^(score - top)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_EVEN: tl.constexpr,  # num_keys is a multiple of BLOCK_N
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    USES_TMA: tl.constexpr,  # the copy engine of sm_90 and later loads the tiles, and fills edges
):
    """Take `num_keys` more keys and values into the state (acc, top, total)."""
    column = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    for start in range(0, num_keys, BLOCK_N):
        key = start + column
        if USES_TMA:
            k = k_from.load([block, head, start, 0]).reshape([BLOCK_N, BLOCK_D]).T
            v = v_from.load([block, head, start, 0]).reshape([BLOCK_N, BLOCK_D])
        else:
            k_at = k_from + key[None, :] * k_stride + channel[:, None]
            v_at = v_from + key[:, None] * v_stride + channel[None, :]
            if IS_EVEN and HEAD_DIM == BLOCK_D:
                k = tl.load(k_at)
                v = tl.load(v_at)
            elif HEAD_DIM == BLOCK_D:
                k = tl.load(k_at, mask=key[None, :] < num_keys, other=0.0)
                v = tl.load(v_at, mask=key[:, None] < num_keys, other=0.0)
            else:
                inside = channel < HEAD_DIM
                k = tl.load(k_at, mask=(key[None, :] < num_keys) & inside[:, None], other=0.0)
                v = tl.load(v_at, mask=(key[:, None] < num_keys) & inside[None, :], other=0.0)
        if WIDEN:
            scores = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee")
        else:
            scores = tl.dot(q, k, input_precision=PRECISION)
        if not IS_EVEN:
            scores = tl.where(key[None, :] < num_keys, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        p = p.to(v.dtype)
        if WIDEN:
            acc += tl.dot(p.to(tl.float32), v.to(tl.float32), input_precision="ieee")
        else:
            acc = tl.dot(p, v, acc, input_precision=PRECISION)
        top = higher
    return acc, top, total


_COUNTS = [
    "num_rows",
    "num_heads",
    "num_slots",
    "num_tokens",
    "num_entries",
    "num_references",
    "num_ref_tokens",
    "first_delta_row",
]


@triton.jit(do_not_specialize=_COUNTS)  # one binary for all counts, here as ahead of time
def reference_attention_kernel(
    q_ptr,  # [B, H, N, D], strides below, D contiguous
    k_ptr,
    v_ptr,
    ref_k_ptr,  # [T, R, H, M, D], contiguous
    ref_v_ptr,
    ref_of_row_ptr,  # int32 [B, S], contiguous
    step_ptr,  # int32 [1]
    out_ptr,  # [B, N, H * D], contiguous
    delta_ptr,  # [B - first_delta_row, S, N, H * D], contiguous; not read in joint mode
    q_stride_row,
    q_stride_head,
    q_stride_token,
    k_stride_row,
    k_stride_head,
    k_stride_token,
    v_stride_row,
    v_stride_head,
    v_stride_token,
    num_rows,  # B
    num_heads,  # H
    num_slots,  # S
    num_tokens,  # N
    num_entries,  # T
    num_references,  # R
    num_ref_tokens,  # M
    first_delta_row,  # rows ahead of it are joint; B in joint mode
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,  # HEAD_DIM rounded up to a power of two
    IS_SEPARATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_EVEN_M: tl.constexpr,  # N is a multiple of BLOCK_M
    IS_EVEN_SELF: tl.constexpr,  # N is a multiple of BLOCK_N
    IS_EVEN_REF: tl.constexpr,  # M is a multiple of BLOCK_N
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,  # the interpreter multiplies the bits of bfloat16: widen them first
    USES_TMA: tl.constexpr,  # keys and values are descriptors of blocks [1, 1, BLOCK_N, BLOCK_D]
):
    """Grid: (ceil(N / BLOCK_M), H, B). See the module for what is computed."""
    head = tl.program_id(1)
    # Batches are sorted by rising number of references. The longest programs go first, so that
    # none of them starts when the others are done.
    row = num_rows - 1 - tl.program_id(2)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_D)
    row_wide = row.to(tl.int64)
    head_wide = head.to(tl.int64)

    q_at = q_ptr + row_wide * q_stride_row + head_wide * q_stride_head
    q_at = q_at + token[:, None] * q_stride_token + channel[None, :]
    is_query = token[:, None] < num_tokens
    if HEAD_DIM != BLOCK_D:
        is_query = is_query & (channel < HEAD_DIM)[None, :]
    if IS_EVEN_M and HEAD_DIM == BLOCK_D:
        q = tl.load(q_at)
    else:
        q = tl.load(q_at, mask=is_query, other=0.0)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    k_from = k_ptr
    v_from = v_ptr
    if not USES_TMA:
        k_from += row_wide * k_stride_row + head_wide * k_stride_head
        v_from += row_wide * v_stride_row + head_wide * v_stride_head
    acc, top, total = attend(
        q,
        k_from,
        v_from,
        k_stride_token,
        v_stride_token,
        row,
        head,
        num_tokens,
        scale,
        acc,
        top,
        total,
        HEAD_DIM=HEAD_DIM,
        BLOCK_D=BLOCK_D,
        BLOCK_N=BLOCK_N,
        IS_EVEN=IS_EVEN_SELF,
        PRECISION=PRECISION,
        WIDEN=WIDEN,
        USES_TMA=USES_TMA,
    )

    width = num_heads * HEAD_DIM
    out_at = out_ptr + row_wide * num_tokens * width + head * HEAD_DIM
    out_at = out_at + token[:, None] * width + channel[None, :]
    has_deltas = row >= first_delta_row
    lse_self = top
    if IS_SEPARATE:
        lse_self = top + tl.log2(total)
        if has_deltas:
            tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_query)
            # The tile is read back below, by other threads than those that wrote it.
            tl.debug_barrier()

    step = tl.load(step_ptr)
    is_step = (step >= 0) & (step < num_entries)
    for slot in range(num_slots):
        ref = tl.load(ref_of_row_ptr + row * num_slots + slot)
        is_ref = is_step & (ref >= 0) & (ref < num_references)
        is_wrong = (ref != -1) & (is_ref == 0)
        num_keys = tl.where(is_ref, num_ref_tokens, 0)
        entry = tl.where(is_ref, step.to(tl.int64) * num_references + ref, 0)
        ref_k_from = ref_k_ptr
        ref_v_from = ref_v_ptr
        if not USES_TMA:
            offset = (entry * num_heads + head) * num_ref_tokens * HEAD_DIM
            ref_k_from += offset
            ref_v_from += offset
        if IS_SEPARATE:
            if has_deltas:
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                top = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
        acc, top, total = attend(
            q,
            ref_k_from,
            ref_v_from,
            HEAD_DIM,
            HEAD_DIM,
            entry.to(tl.int32),
            head,
            num_keys,
            scale,
            acc,
            top,
            total,
            HEAD_DIM=HEAD_DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            IS_EVEN=IS_EVEN_REF,
            PRECISION=PRECISION,
            WIDEN=WIDEN,
            USES_TMA=USES_TMA,
        )
        total = tl.where(is_wrong, float("nan"), total)
        if IS_SEPARATE:
            if has_deltas:
                # No keys: lse is -inf, the share 0, the weight 0 and the delta 0.
                is_empty = total == 0.0
                divisor = tl.where(is_empty, 1.0, total)
                lse = tl.where(is_empty, float("-inf"), top + tl.log2(divisor))
                share = tl.exp2(lse - tl.maximum(lse, lse_self))  # of the larger: no overflow
                weight = share / (share + tl.exp2(lse_self - tl.maximum(lse, lse_self)))
                o_self = tl.load(out_at, mask=is_query, other=0.0).to(tl.float32)
                delta = weight[:, None] * (acc / divisor[:, None] - o_self)
                place = ((row_wide - first_delta_row) * num_slots + slot) * num_tokens
                delta_at = delta_ptr + place * width + head * HEAD_DIM
                delta_at = delta_at + token[:, None] * width + channel[None, :]
                tl.store(delta_at, delta.to(delta_ptr.dtype.element_ty), mask=is_query)

    if IS_SEPARATE:
        if not has_deltas:
            tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_query)
    else:
        tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_query)
