"""The kernels as operators of torch: `torch.ops.bootpig_rt.*`.

On CUDA they launch the Triton kernels, elsewhere they run the eager twins (or, in Triton's
interpreter, the kernels themselves). They are opaque to tracing and have fakes, so they work under
`torch.compile(fullgraph=True)` and `torch.export`. They do not differentiate: training takes the
eager path.

Call the functions of this file, not `torch.ops`: they also check the values of the indices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from bootpig_rt.kernels import checks, eager_ops
from bootpig_rt.kernels.launch import launch_attention, launch_merge, launches


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    *,
    checks_indices: bool = True,
) -> Tensor:
    """One softmax over a row's own tokens and those of all its references.

    Args:
        q: [B, H, N, D], float16, bfloat16 or float32; strided, D contiguous. D is 16 to 128 in
            steps of 8.
        k: [B, H, N, D], likewise.
        v: [B, H, N, D], likewise.
        ref_k: [T, R, H, M, D], contiguous; keys of R references at T entries, `ref_scale` in them.
        ref_v: [T, R, H, M, D], contiguous.
        ref_of_row: int32 [B, S], which references a row reads, -1 for none. Rows sorted by rising
            number of references run best.
        step: int32 [1] on the device, the entry to read.
        checks_indices: Read `ref_of_row` and `step` on the host and check them, which waits for
            the device; not while a trace or a graph is recorded. Leave it out in a loop that has
            planned its rows on the host: a wrong index then gives NaN.

    Returns:
        [B, N, H * D], contiguous, in the dtype of q.

    Raises:
        ParameterError: A tensor has the wrong type, device, shape or layout, or an index is
            outside the table.
        BackendUnavailable: Triton is missing or too old, or the GPU has no tile configuration.
    """
    checks.check_attention(q, k, v, ref_k, ref_v, ref_of_row, step)
    if checks_indices and _can_read(q):
        checks.check_indices(ref_of_row, step, ref_k)
    return torch.ops.bootpig_rt.reference_attention(  # type: ignore[no-any-return]
        q, k, v, ref_k, ref_v, ref_of_row, step
    )


def reference_attention_deltas(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    *,
    first_delta_row: int,
    checks_indices: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attention to own tokens, and what each reference changes, for the last rows of a batch.

    Arguments are those of `reference_attention`; rows ahead of `first_delta_row` are computed as
    there.

    Returns:
        `o` [B, N, H * D]: own tokens alone, for rows from `first_delta_row` on. `deltas`
        [B - first_delta_row, S, N, H * D]: attention with the reference of the slot minus `o`,
        zero where the slot holds -1.

    Raises:
        ParameterError: As for `reference_attention`.
        BackendUnavailable: As for `reference_attention`.
    """
    checks.check_attention(q, k, v, ref_k, ref_v, ref_of_row, step, first_delta_row)
    if checks_indices and _can_read(q):
        checks.check_indices(ref_of_row, step, ref_k)
    attended: tuple[Tensor, Tensor] = torch.ops.bootpig_rt.reference_attention_deltas(
        q, k, v, ref_k, ref_v, ref_of_row, step, first_delta_row
    )
    return attended


def reference_merge(
    projected: Tensor,
    change: Tensor,
    ref_of_row: Tensor,
    *,
    first_delta_row: int,
    merge: str,
) -> Tensor:
    """Add to each token what its references change, merged.

    Args:
        projected: [B, N, C], the output projection of `o`, bias included; contiguous.
        change: [B - first_delta_row, S, N, C], that of `deltas`, without bias; contiguous.
        ref_of_row: int32 [B, S].
        first_delta_row: The row that `change` starts with.
        merge: `argmax`, `softmax` or `mean`; see `bootpig_rt.kernels.reference_merge`.

    Returns:
        [B, N, C], contiguous.

    Raises:
        ParameterError: A tensor has the wrong type, device, shape or layout, or another merge.
        BackendUnavailable: Triton is missing or too old.
    """
    checks.check_merge(projected, change, ref_of_row, first_delta_row, merge)
    return torch.ops.bootpig_rt.reference_merge(  # type: ignore[no-any-return]
        projected, change, ref_of_row, first_delta_row, merge
    )


def _can_read(tensor: Tensor) -> bool:
    """Values can be read on the host: nothing traces or captures."""
    if torch.compiler.is_compiling() or is_tracing():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


@torch.library.custom_op("bootpig_rt::reference_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor, ref_of_row: Tensor, step: Tensor
) -> Tensor:
    checks.check_attention_layout(q, k, v, ref_k, ref_v, ref_of_row, step)
    if launches(q):
        return launch_attention(q, k, v, ref_k, ref_v, ref_of_row, step)[0]
    return eager_ops.attention(q, k, v, ref_k, ref_v, ref_of_row, step)


@_attention.register_fake
def _(q: Tensor, *_: Tensor) -> Tensor:
    return _joined(q)


@torch.library.custom_op("bootpig_rt::reference_attention_deltas", mutates_args=())
def _attention_deltas(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    first_delta_row: int,
) -> tuple[Tensor, Tensor]:
    checks.check_attention_layout(q, k, v, ref_k, ref_v, ref_of_row, step)
    run = launch_attention if launches(q) else eager_ops.attention_deltas
    return run(q, k, v, ref_k, ref_v, ref_of_row, step, first_delta_row)


@_attention_deltas.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor, refs: Tensor, _: Tensor, row: int
) -> tuple[Tensor, Tensor]:
    out = _joined(q)
    return out, out.new_empty(len(q) - row, refs.shape[1], *out.shape[1:])


@torch.library.custom_op("bootpig_rt::reference_merge", mutates_args=())
def _merge(
    projected: Tensor, change: Tensor, ref_of_row: Tensor, first_delta_row: int, merge: str
) -> Tensor:
    checks.check_contiguous(projected=projected, change=change, ref_of_row=ref_of_row)
    run = launch_merge if launches(projected) else eager_ops.merge
    return run(projected, change, ref_of_row, first_delta_row, merge)


@_merge.register_fake
def _(projected: Tensor, *_: Any) -> Tensor:
    return projected.new_empty(projected.shape)


def _joined(q: Tensor) -> Tensor:
    """Queries [B, H, N, D] as the output [B, N, H * D]."""
    rows, heads, tokens, head_dim = q.shape
    return q.new_empty(rows, tokens, heads * head_dim)
