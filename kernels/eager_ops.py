r"""The eager twins of the kernels: the same arguments and results, in plain torch, row by row.

They are the oracles that kernels, graphs and the path that trains are compared with, written to be
read beside the BootPIG paper (arXiv 2401.13974). With q, k, v of the base tokens and k_i, v_i of
reference i, d the head dim, all heads apart:

    plain attention       o   = softmax(q k^T / sqrt(d)) v
    RSA with reference i  o_i = softmax(q [k; k_i]^T / sqrt(d)) [v; v_i]

and after the output projection W, b over the joined heads, for several references:

    change                delta_i = W (o_i - o)          (the bias cancels)
    size of the change    n_i = || delta_i ||_2          per token, over all channels   (eq. 5, 6)
    weights               p = softmax_i(n)                                              (eq. 7)
    output                y = W o + b + sum_i p_i delta_i                               (eq. 8)

The published code puts all weight on the largest n_i instead (`argmax`). `mean` is
W mean_i(o_i) + b; `concat` is one softmax over own tokens and those of all references. With one
reference all four are W o_1 + b.

They compute in the dtype of their arguments, as a pipeline without the kernels would: give float32
or float64 tensors for an oracle.

They read `ref_of_row` and `step` on the host and so cannot be captured in a graph. Dim letters: B
rows, H heads, N own tokens, D head dim, T table entries, R references of the table, M tokens of a
reference, S slots of a row, E rows with deltas, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bootpig_rt.errors import ParameterError


def attention(
    q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor, ref_of_row: Tensor, step: Tensor
) -> Tensor:
    """One softmax over a row's own tokens and those of all its references.

    Args:
        q: [B, H, N, D].
        k: [B, H, N, D].
        v: [B, H, N, D].
        ref_k: [T, R, H, M, D], `ref_scale` already in them.
        ref_v: [T, R, H, M, D].
        ref_of_row: Integers [B, S], indices into the R references, -1 for none.
        step: Integer [1], index into the T entries.

    Returns:
        [B, N, H * D], in the dtype of q.
    """
    keys, values = ref_k[int(step)], ref_v[int(step)]
    rows = [
        _attend(q[row], k[row], v[row], keys, values, used)
        for row, used in enumerate(used_references(ref_of_row))
    ]
    return torch.stack(rows)


def attention_deltas(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    first_delta_row: int,
) -> tuple[Tensor, Tensor]:
    """Attention to own tokens, and what each reference changes, for the last rows of a batch.

    Arguments are those of `attention`; rows ahead of `first_delta_row` are computed as there.

    Returns:
        `o` [B, N, H * D]: own tokens alone, for rows from `first_delta_row` on. `deltas`
        [E, S, N, H * D] for those E rows: attention with the reference of the slot minus `o`,
        zero where the slot holds -1.
    """
    keys, values = ref_k[int(step)], ref_v[int(step)]
    rows: list[Tensor] = []
    changes: list[Tensor] = []
    for row, slots in enumerate(ref_of_row.tolist()):
        own = (q[row], k[row], v[row])
        if row < first_delta_row:
            rows.append(_attend(*own, keys, values, [ref for ref in slots if ref >= 0]))
            continue
        plain = _attend(*own, keys, values, [])
        rows.append(plain)
        changes.append(
            torch.stack(
                [
                    torch.zeros_like(plain)
                    if ref < 0
                    else _attend(*own, keys, values, [ref]) - plain
                    for ref in slots
                ]
            )
        )
    joined = torch.stack(rows)
    if not changes:
        return joined, joined.new_empty(0, ref_of_row.shape[1], *joined.shape[1:])
    return joined, torch.stack(changes)


def merge(
    projected: Tensor, change: Tensor, ref_of_row: Tensor, first_delta_row: int, mode: str
) -> Tensor:
    """Add to each token what its references change, merged.

    Args:
        projected: [B, N, C], the output projection of `o`, bias included.
        change: [E, S, N, C], the output projection of `deltas`, without bias.
        ref_of_row: [B, S].
        first_delta_row: The row that `change` starts with; rows ahead of it are passed through.
        mode: `argmax` (largest norm over C, the lowest slot where norms are equal), `softmax`
            (of the norms) or `mean`, over the slots that hold a reference.

    Returns:
        [B, N, C], in the dtype of `projected`.
    """
    weight = merge_weights(change, ref_of_row[first_delta_row:], mode)
    # A slot without a reference counts for nothing, whatever its memory holds.
    counted = change.masked_fill(weight.unsqueeze(-1) == 0, 0.0)
    merged = (weight.unsqueeze(-1) * counted.to(weight.dtype)).sum(dim=1)
    last = projected[first_delta_row:].to(weight.dtype) + merged
    return torch.cat([projected[:first_delta_row], last.to(projected.dtype)])


def merge_weights(change: Tensor, ref_of_row: Tensor, mode: str) -> Tensor:
    """Weight of each slot at each token, [E, S, N], float32 or wider; see `merge`.

    Raises:
        ParameterError: Another mode.
    """
    wide = torch.promote_types(change.dtype, torch.float32)
    is_used = (ref_of_row != -1).unsqueeze(-1).expand(change.shape[:3])
    if mode == "mean":
        share: Tensor = is_used / is_used.sum(dim=1, keepdim=True).clamp(min=1).to(wide)
        return share
    norms = torch.linalg.vector_norm(change.to(wide), dim=-1)
    norms = norms.masked_fill(~is_used, float("-inf"))
    if mode == "softmax":
        weight: Tensor = norms.softmax(dim=1).masked_fill(~is_used, 0.0)
        return weight
    if mode == "argmax":
        # torch.argmax promises nothing about ties of floats: the lowest slot is chosen explicitly.
        # NaN equals nothing; it is chosen, so that it reaches the output.
        largest = norms.max(dim=1, keepdim=True).values
        is_best = ((norms == largest) | norms.isnan()) & is_used
        is_first = is_best & (is_best.cumsum(dim=1) == 1)
        chosen: Tensor = is_first.to(wide)
        return chosen
    raise ParameterError(f"merge is {mode!r}, expected argmax, softmax or mean")


def used_references(ref_of_row: Tensor) -> list[list[int]]:
    """The references of each row, without the empty slots."""
    rows: list[list[int]] = ref_of_row.tolist()
    return [[ref for ref in row if ref >= 0] for row in rows]


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    offset: Tensor | None = None,
) -> Tensor:
    """Group norm of pictures [B, C, h, w], and SiLU behind it; see `block_ops.group_norm`."""
    if offset is not None:
        x = x + offset[:, :, None, None]
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def add_layer_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A residual sum of tokens [..., C], x itself without a change, and the layer norm of it."""
    total = x if change is None else x + change
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def geglu(x: Tensor) -> Tensor:
    """[..., 2 * C] -> [..., C]: one half of the channels times the GELU of the other."""
    linear, gate = x.chunk(2, dim=-1)
    return linear * F.gelu(gate)


def residual_add(x: Tensor, change: Tensor, bias: Tensor) -> Tensor:
    """The sum of two pictures [B, C, h, w], and a number a channel [C]."""
    return x + (change + bias[:, None, None])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor, used: list[int]
) -> Tensor:
    """One row: q, k, v [H, N, D], the table's entry [R, H, M, D] -> [N, H * D]."""
    keys = torch.cat([k, *(ref_k[ref] for ref in used)], dim=1)
    values = torch.cat([v, *(ref_v[ref] for ref in used)], dim=1)
    # With a batch dimension: without it torch takes its slow path.
    attended = F.scaled_dot_product_attention(q[None], keys[None], values[None])[0]
    return attended.transpose(0, 1).flatten(1)
