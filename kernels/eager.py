r"""Oracles of reference self-attention in plain torch: the arithmetic, row by row, nothing fused.

They are what the fast implementations are compared with, and are written to be read beside the
BootPIG paper (arXiv 2401.13974), not to be quick. With q, k, v of the base tokens and k_i, v_i of
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
"""

from __future__ import annotations

import torch
from torch import Tensor

from bootpig_rt.errors import ParameterError

MERGES = ("argmax", "softmax", "mean", "concat")


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the last two dimensions, computed in float32 or wider.

    Args:
        q: [..., N, D].
        k: [..., S, D].
        v: [..., S, D].

    Returns:
        [..., N, D], float32 or float64.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended


def merge_references(change: Tensor, *, merge: str) -> Tensor:
    """Combine what each reference changes, per token.

    Args:
        change: delta_i [R, N, C], after the output projection, all heads joined.
        merge: `argmax` takes the reference with the largest norm over C, the lowest index where
            norms are equal; `softmax` weighs by the softmax of the norms; `mean` averages.

    Returns:
        [N, C], in the dtype of `change`.

    Raises:
        ParameterError: Another merge; `concat` has no change per reference.
    """
    if merge == "mean":
        return change.mean(dim=0)
    norms = torch.linalg.vector_norm(change, dim=-1)
    if merge == "softmax":
        weighted: Tensor = norms.softmax(dim=0).unsqueeze(-1) * change
        return weighted.sum(dim=0)
    if merge == "argmax":
        chosen, largest = change[0], norms[0]
        for candidate, norm in zip(change[1:], norms[1:], strict=True):
            better = norm > largest  # strictly: the lowest index wins a tie
            chosen = torch.where(better.unsqueeze(-1), candidate, chosen)
            largest = torch.where(better, norm, largest)
        return chosen
    raise ParameterError(f"merge is {merge!r}, expected argmax, softmax or mean")


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    merge: str = "argmax",
) -> Tensor:
    """Reference self-attention of a batch, output projection included.

    A row whose `ref_of_row` is all -1 is plain self-attention: the references are not read for it.

    Args:
        q: [B, H, N, D], queries of the base tokens.
        k: [B, H, N, D], keys of the base tokens.
        v: [B, H, N, D], values of the base tokens.
        ref_k: [N_ref, H, M, D], keys of all references, `ref_scale` already in them.
        ref_v: [N_ref, H, M, D], values of all references.
        ref_of_row: int64 [B, R], indices into the references, -1 for none.
        out_weight: W [C, H * D].
        out_bias: b [C], or None.
        merge: How several references of one row are combined.

    Returns:
        [B, N, C], float32 or float64.

    Raises:
        ParameterError: An unknown merge.
    """
    if merge not in MERGES:
        raise ParameterError(f"merge is {merge!r}, expected one of {', '.join(MERGES)}")
    wide = torch.promote_types(q.dtype, torch.float32)
    weight = out_weight.to(wide)
    bias = 0.0 if out_bias is None else out_bias.to(wide)
    rows: list[Tensor] = []
    for row, refs in enumerate(ref_of_row.tolist()):
        own = (q[row], k[row], v[row])
        used = [ref for ref in refs if ref >= 0]
        if merge == "concat" and used:
            seen = _join_heads(_attend(own, list(ref_k[used]), list(ref_v[used])))
            rows.append(seen @ weight.T + bias)
            continue
        plain = _join_heads(_attend(own, [], []))
        output = plain @ weight.T + bias
        if used:
            each = [_join_heads(_attend(own, [ref_k[ref]], [ref_v[ref]])) for ref in used]
            change = torch.stack([(seen - plain) @ weight.T for seen in each])
            output = output + merge_references(change, merge=merge)
        rows.append(output)
    return torch.stack(rows)


def _attend(own: tuple[Tensor, Tensor, Tensor], keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of one row [H, N, D] to its own tokens and to those of some references."""
    q, k, v = own
    return scaled_dot_product(q, torch.cat([k, *keys], dim=1), torch.cat([v, *values], dim=1))


def _join_heads(attended: Tensor) -> Tensor:
    """[H, N, D] -> [N, H * D]."""
    return attended.transpose(0, 1).flatten(1)
