"""Gradients of the three operators, written out in plain torch.

Autograd cannot record inside a custom operator, so the formulas stand here. Scores are computed
anew, one row at a time and in float32 or wider: a row's [H, N, N + S M] scores are all the memory
that is needed at once. Tests compare them with autograd on the eager twins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bootpig_rt.kernels.eager_ops import merge_weights, used_references

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of q, k, v, ref_k, ref_v."""


def attention_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
) -> Gradients:
    """Gradients of `eager_ops.attention` for `grad` [B, N, H * D]."""
    total = _Sums(q, k, v, ref_k, ref_v, int(step))
    for row, used in enumerate(used_references(ref_of_row)):
        total.add(row, used, grad[row])
    return total.rounded()


def attention_deltas_gradients(
    grad: Tensor,
    grad_deltas: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    first_delta_row: int,
) -> Gradients:
    """Gradients of `eager_ops.attention_deltas` for [B, N, H * D] and [E, S, N, H * D]."""
    total = _Sums(q, k, v, ref_k, ref_v, int(step))
    for row, slots in enumerate(ref_of_row.tolist()):
        if row < first_delta_row:
            total.add(row, [ref for ref in slots if ref >= 0], grad[row])
            continue
        # delta = (own tokens and reference) - (own tokens)
        plain = grad[row]
        for slot, ref in enumerate(slots):
            if ref >= 0:
                of_slot = grad_deltas[row - first_delta_row, slot]
                total.add(row, [ref], of_slot)
                plain = plain - of_slot
        total.add(row, [], plain)
    return total.rounded()


def merge_gradients(
    grad: Tensor, change: Tensor, ref_of_row: Tensor, first_delta_row: int, mode: str
) -> Tensor:
    """Gradient of `eager_ops.merge` for `change` [E, S, N, C]; that for `projected` is `grad`.

    The choice of `argmax` is a constant, as in autograd.
    """
    weight = merge_weights(change, ref_of_row[first_delta_row:], mode)
    of_row = grad[first_delta_row:].unsqueeze(1).to(weight.dtype)
    result = weight.unsqueeze(-1) * of_row
    if mode == "softmax":
        wide = change.to(weight.dtype).masked_fill(weight.unsqueeze(-1) == 0, 0.0)
        along = (of_row * wide).sum(dim=-1)
        of_norm = weight * (along - (weight * along).sum(dim=1, keepdim=True))
        norms = torch.linalg.vector_norm(wide, dim=-1)
        # The norm has no slope at zero; autograd takes zero there as well.
        slope = torch.where(norms > 0, of_norm / norms, 0.0)
        result = result + slope.unsqueeze(-1) * wide
    return result.to(change.dtype)


class _Sums:
    """Sums of gradients over rows and references, in float32 or wider."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor, step: int
    ) -> None:
        self._wide = torch.promote_types(q.dtype, torch.float32)
        self._inputs = (q, k, v, ref_k, ref_v)
        self._step = step
        self._sums = tuple(
            torch.zeros(tensor.shape, dtype=self._wide, device=tensor.device)
            for tensor in self._inputs
        )

    def add(self, row: int, used: list[int], grad: Tensor) -> None:
        """Gradients of one softmax of one row over own tokens and the references `used`.

        Args:
            row: Row of the batch.
            used: References that it reads.
            grad: [N, H * D].
        """
        q, k, v = (tensor[row].to(self._wide) for tensor in self._inputs[:3])
        entry_k, entry_v = (tensor[self._step] for tensor in self._inputs[3:])
        keys = torch.cat([k, *(entry_k[ref].to(self._wide) for ref in used)], dim=1)
        values = torch.cat([v, *(entry_v[ref].to(self._wide) for ref in used)], dim=1)
        scale = q.shape[-1] ** -0.5
        by_head = grad.to(self._wide).unflatten(-1, (q.shape[0], -1)).transpose(0, 1)
        p = (q @ keys.transpose(-1, -2) * scale).softmax(dim=-1)
        of_p = by_head @ values.transpose(-1, -2)
        of_scores = p * (of_p - (p * of_p).sum(dim=-1, keepdim=True)) * scale
        of_keys, of_values = of_scores.transpose(-1, -2) @ q, p.transpose(-1, -2) @ by_head
        sum_q, sum_k, sum_v, sum_ref_k, sum_ref_v = self._sums
        sum_q[row] += of_scores @ keys
        own = k.shape[1]
        sum_k[row] += of_keys[:, :own]
        sum_v[row] += of_values[:, :own]
        per_reference = entry_k.shape[-2]
        for index, ref in enumerate(used):
            start = own + index * per_reference
            place = slice(start, start + per_reference)
            sum_ref_k[self._step, ref] += of_keys[:, place]
            sum_ref_v[self._step, ref] += of_values[:, place]

    def rounded(self) -> Gradients:
        """The sums in the dtypes of the inputs."""
        q, k, v, ref_k, ref_v = (
            total.to(tensor.dtype) for total, tensor in zip(self._sums, self._inputs, strict=True)
        )
        return q, k, v, ref_k, ref_v
