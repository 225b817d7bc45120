"""Reference self-attention (RSA) of the Base U-Net: with the fused kernels, or eager.

The eager path uses `scaled_dot_product_attention`, trains and exports. `bootpig_rt.kernels.choose`
picks; `bootpig_rt.kernels.eager_ops` holds the arithmetic row by row, and tests compare all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.kernels import choose, ops
from bootpig_rt.models.rows import RowGroup, RowPlan

__all__ = [
    "KV",
    "Merge",
    "MergeRule",
    "attention",
    "change_norms",
    "join_heads",
    "reference_self_attention",
    "split_heads",
    "take_reference",
]

KV: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [N, H, M, D]."""

MergeRule: TypeAlias = Merge | Callable[[Tensor], Tensor]
"""How several references of a row are combined: a name, or a function of what each one changes,
[b, R, N, C] -> [b, N, C], for which the eager path is taken."""


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, H * D] -> [B, H, N, D], a view."""
    split: Tensor = tokens.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def join_heads(attended: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, H * D]."""
    return attended.transpose(1, 2).flatten(-2)


def attention(attn: Any, tokens: Tensor, context: Tensor | KV) -> Tensor:
    """A diffusers `Attention` module without masks: self- or cross-attention.

    Args:
        attn: The module; its projections, heads and output dropout are used.
        tokens: [B, N, C], queries.
        context: [B, S, E], what keys and values are projected from, `tokens` itself for
            self-attention; or those keys and values, each [B, S, H * D].

    Returns:
        [B, N, C].
    """
    keys, values = context if isinstance(context, tuple) else project(attn, context)
    q, k, v = (split_heads(part, attn.heads) for part in (attn.to_q(tokens), keys, values))
    return _project_out(attn, join_heads(F.scaled_dot_product_attention(q, k, v)))


def project_own(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, N, D] of [B, N, C], of a self-attention.

    As one product where `bootpig_rt.models.joined` joined the weights.
    """
    joined = getattr(attn, "joined_projections", None)
    if joined is None:
        q, k, v = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
    else:
        q, k, v = F.linear(tokens, *joined).chunk(3, dim=-1)
    q, k, v = (split_heads(part, attn.heads) for part in (q, k, v))
    return q, k, v


def project(attn: Any, context: Tensor) -> KV:
    """Keys and values [..., H * D] of [..., E]."""
    return attn.to_k(context), attn.to_v(context)


def reference_self_attention(
    attn: Any,
    tokens: Tensor,
    reference: KV,
    plan: RowPlan,
    *,
    merge: MergeRule,
    entry: Tensor | None = None,
) -> Tensor:
    """Self-attention in which each row also reads its references.

    Args:
        attn: The self-attention module of the Base U-Net.
        tokens: [B, N, C], after the block's first norm, in the order of the plan.
        reference: Keys and values of all references, each [N_ref, H, M, D]; keys already scaled.
            With `entry`, those of all entries of a table, each [T, N_ref, H, M, D].
        plan: Which rows read which references.
        merge: How several references of a row are combined.
        entry: int32 [1] on the device of the tokens, the entry of the table to read. The kernels
            follow it there, so that one captured graph reads another entry at each step.

    Returns:
        [B, N, C], after the output projection, in the order of the plan.
    """
    q, k, v = project_own(attn, tokens)
    if plan.ref_of_row is not None and isinstance(merge, str) and choose.is_fused(q):
        return _fused(attn, (q, k, v), reference, plan, merge=merge, entry=entry)
    if entry is not None:
        reference = _entry_of(reference, entry)
    attended: list[Tensor] = []
    deltas: list[tuple[slice, Tensor]] = []
    for group in plan.groups:
        rows = group.rows
        if group.num_references == 0:
            attended.append(join_heads(F.scaled_dot_product_attention(q[rows], k[rows], v[rows])))
        elif group.num_references == 1 or merge == "concat":
            joined = _one_softmax(q[rows], k[rows], v[rows], reference, group)
            if group.num_references == 1 and group.present is not None:
                plain = F.scaled_dot_product_attention(q[rows], k[rows], v[rows])
                joined = joined.where(group.present[..., None, None], plain)
            attended.append(join_heads(joined))
        else:
            per_reference = _each_reference(q[rows], k[rows], v[rows], reference, group)
            if merge == "mean":
                # The output projection is linear: the mean may be taken ahead of it.
                attended.append(_mean(per_reference, group.present))
                continue
            plain = join_heads(F.scaled_dot_product_attention(q[rows], k[rows], v[rows]))
            attended.append(plain)
            change = F.linear(per_reference - plain.unsqueeze(1), attn.to_out[0].weight)
            deltas.append((rows, _merge(change, merge, group.present)))
    joined = attended[0] if len(attended) == 1 else torch.cat(attended)
    projected = attn.to_out[0](joined)
    if deltas:
        # Groups are sorted by their number of references, so these are the last ones.
        pieces = [projected[rows] + change.to(projected.dtype) for rows, change in deltas]
        projected = torch.cat([projected[: deltas[0][0].start], *pieces])
    return _dropped(attn, projected)


def _fused(
    attn: Any,
    own: tuple[Tensor, Tensor, Tensor],
    reference: KV,
    plan: RowPlan,
    *,
    merge: Merge,
    entry: Tensor | None,
) -> Tensor:
    """The same with the fused kernels; the plan has checked the indices."""
    refs, first = plan.ref_of_row, plan.first_of_several
    assert refs is not None  # the caller has looked
    if entry is not None and reference[0].dtype != own[0].dtype:
        reference, entry = _entry_of(reference, entry), None  # converts what is read, no more
    if entry is None:
        table_k, table_v = (ref.to(own[0].dtype).contiguous().unsqueeze(0) for ref in reference)
        step = refs.new_zeros(1)
    else:
        (table_k, table_v), step = reference, entry
    if first == plan.num_rows or merge == "concat":
        joined = ops.reference_attention(*own, table_k, table_v, refs, step, checks_indices=False)
        return _dropped(attn, attn.to_out[0](joined))
    joined, deltas = ops.reference_attention_deltas(
        *own, table_k, table_v, refs, step, first_delta_row=first, checks_indices=False
    )
    if merge == "mean":  # linear, so it may be taken ahead of the projection
        joined = ops.reference_merge(joined, deltas, refs, first_delta_row=first, merge=merge)
        return _dropped(attn, attn.to_out[0](joined))
    merged = ops.reference_merge(
        attn.to_out[0](joined),
        F.linear(deltas, attn.to_out[0].weight),
        refs,
        first_delta_row=first,
        merge=merge,
    )
    return _dropped(attn, merged)


def _entry_of(table: KV, entry: Tensor) -> KV:
    """One entry of a table: a view on a CPU; elsewhere a copy, for which no one waits."""
    keys, values = table
    if keys.device.type == "cpu" and not torch.compiler.is_compiling():
        index = int(entry)
        return keys[index], values[index]
    return keys.index_select(0, entry).squeeze(0), values.index_select(0, entry).squeeze(0)


def _dropped(attn: Any, projected: Tensor) -> Tensor:
    dropped: Tensor = attn.to_out[1](projected)
    return dropped


def _project_out(attn: Any, joined: Tensor) -> Tensor:
    return _dropped(attn, attn.to_out[0](joined))


def _one_softmax(q: Tensor, k: Tensor, v: Tensor, reference: KV, group: RowGroup) -> Tensor:
    """One softmax over own tokens and those of all references: [b, H, N, D]."""
    ref_k, ref_v = (group.select(table) for table in reference)
    if group.num_references == 1:
        ref_k, ref_v = ref_k.squeeze(1), ref_v.squeeze(1)
    else:
        ref_k, ref_v = (ref.transpose(1, 2).flatten(2, 3) for ref in (ref_k, ref_v))
    k = torch.cat([k, ref_k.to(k.dtype)], dim=2)
    v = torch.cat([v, ref_v.to(v.dtype)], dim=2)
    return F.scaled_dot_product_attention(q, k, v)


def _each_reference(q: Tensor, k: Tensor, v: Tensor, reference: KV, group: RowGroup) -> Tensor:
    """Attention with one reference at a time: [b, R, N, H * D]."""
    num = group.num_references
    ref_k, ref_v = (group.select(table) for table in reference)
    own_k, own_v = (own.unsqueeze(1).expand(-1, num, -1, -1, -1) for own in (k, v))
    keys = torch.cat([own_k, ref_k.to(k.dtype)], dim=3).flatten(0, 1)
    values = torch.cat([own_v, ref_v.to(v.dtype)], dim=3).flatten(0, 1)
    queries = q.unsqueeze(1).expand(-1, num, -1, -1, -1).flatten(0, 1)
    attended = F.scaled_dot_product_attention(queries, keys, values)
    by_reference: Tensor = join_heads(attended).unflatten(0, (-1, num))
    return by_reference


def _mean(by_reference: Tensor, present: Tensor | None) -> Tensor:
    """Mean over the references that are there, [b, R, N, C] -> [b, N, C]."""
    if present is None:
        return by_reference.mean(dim=1)
    column = present[:, :, None, None]
    mean: Tensor = by_reference.where(column, 0).sum(dim=1) / column.sum(dim=1)
    return mean


def _merge(change: Tensor, merge: MergeRule, present: Tensor | None = None) -> Tensor:
    """Weighted sum over references of what each one changes, [b, R, N, C] -> [b, N, C].

    Computed in float32 or wider, whatever type the attention ran in. `present` bool [b, R] says
    which references there are; None: all.
    """
    change = change.to(torch.promote_types(change.dtype, torch.float32))
    if not isinstance(merge, str):
        return merge(change)
    norms = change_norms(change)
    if present is not None:
        norms = norms.where(present[:, :, None], -torch.inf)
    if merge == "softmax":
        weighted: Tensor = norms.softmax(dim=1).unsqueeze(-1) * change
        return weighted.sum(dim=1)
    # torch.argmax promises nothing about ties of floats: the lowest index is chosen explicitly.
    best = norms.max(dim=1, keepdim=True).values
    return take_reference(change, (norms == best).int().argmax(dim=1))


def change_norms(change: Tensor) -> Tensor:
    """How much each reference changes each token, [b, R, N, C] -> [b, R, N]."""
    norms: Tensor = torch.linalg.vector_norm(change, dim=-1)
    return norms


def take_reference(change: Tensor, choice: Tensor) -> Tensor:
    """What one reference a token changes, [b, R, N, C] at int64 [b, N] -> [b, N, C]."""
    index = choice[:, None, :, None].expand(-1, -1, -1, change.shape[-1])
    taken: Tensor = change.gather(1, index).squeeze(1)
    return taken
