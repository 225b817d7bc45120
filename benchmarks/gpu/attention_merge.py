"""Attention with references as a merge: one stock call for own tokens, one for each reference.

Each call also returns the logarithm of the sum of its exponentials, by which two softmaxes over
parts of the keys become one over all: with l and o of own tokens and l_r and o_r of a reference,
the attention to both is o + w (o_r - o), w = 1 / (1 + exp(l - l_r)). The merge runs in float32 and,
on CUDA, compiled into one kernel: the strongest composition of stock kernels.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bootpig_rt.benchmarks.gpu.attention_inputs import Attended, AttentionInputs, Call
from bootpig_rt.benchmarks.gpu.timer import NotAvailable

_AttendLse: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""q, k, v [b, H, N, D] -> attention [b, H, N, D] and its log-sum-exp, float32 [b, H, N, 1]."""


def attention_by_merge(kernel: str, inputs: AttentionInputs) -> Call:
    """A call that merges.

    Args:
        kernel: `flash`, `cudnn`, `efficient` or `fa3`.
        inputs: To attend with.
    """
    attend = _KERNELS[kernel]
    first = inputs.plain_rows
    q, k, v = inputs.q, inputs.k, inputs.v
    is_cuda = q.is_cuda
    reference = inputs.reference
    if not _reads_expanded(attend, inputs):

        def reference(index: int) -> tuple[Tensor, Tensor]:  # copied for each row, inside the time
            keys, values = inputs.reference(index)
            return keys.contiguous(), values.contiguous()

    def run() -> Attended:
        own, own_lse = attend(q, k, v)
        plain = own.transpose(1, 2).flatten(-2)
        guided, guided_lse = own[first:], own_lse[first:]
        if inputs.references == 1:
            ref, ref_lse = attend(q[first:], *reference(0))
            merge = _compiled_merge() if is_cuda else merge_into
            # In place: `plain` is a view of `own`, so this is what the next layer reads.
            merge(guided, guided_lse, ref, ref_lse)
            return Attended((plain if _shares(plain, own) else own.transpose(1, 2).flatten(-2),))
        deltas = plain.new_empty(len(guided), inputs.references, *plain.shape[1:])
        by_head = deltas.unflatten(-1, (q.shape[1], q.shape[3])).transpose(2, 3)
        change = _compiled_change() if is_cuda else change_into
        for index in range(inputs.references):
            ref, ref_lse = attend(q[first:], *reference(index))
            change(by_head[:, index], guided, guided_lse, ref, ref_lse)
        return Attended((plain,), deltas)

    return run


def merge_into(own: Tensor, own_lse: Tensor, ref: Tensor, ref_lse: Tensor) -> None:
    """Attention to both parts, written over that to own tokens.

    Args:
        own: [E, H, N, D]; changed.
        own_lse: float32 [E, H, N, 1].
        ref: [E, H, N, D].
        ref_lse: float32 [E, H, N, 1].
    """
    weight = torch.sigmoid(ref_lse - own_lse)
    own.copy_(own.float() + weight * (ref.float() - own.float()))


def change_into(out: Tensor, own: Tensor, own_lse: Tensor, ref: Tensor, ref_lse: Tensor) -> None:
    """What the reference changes, written to `out` [E, H, N, D]; see `merge_into`."""
    weight = torch.sigmoid(ref_lse - own_lse)
    out.copy_(weight * (ref.float() - own.float()))


def allow_many_shapes() -> None:
    """Torch gives up compiling after eight shapes of one function; a benchmark has more."""
    config: Any = importlib.import_module("torch._dynamo.config")
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(config, name):
            setattr(config, name, 256)
            return


@functools.cache
def _compiled_merge() -> Callable[..., None]:
    allow_many_shapes()
    return torch.compile(merge_into, dynamic=True)


@functools.cache
def _compiled_change() -> Callable[..., None]:
    allow_many_shapes()
    return torch.compile(change_into, dynamic=True)


def _reads_expanded(attend: _AttendLse, inputs: AttentionInputs) -> bool:
    """The kernel takes keys that all rows share by a stride of zero."""
    try:
        with torch.no_grad():
            attend(inputs.q[inputs.plain_rows :], *inputs.reference(0))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def _shares(view: Tensor, whole: Tensor) -> bool:
    return view.data_ptr() == whole.data_ptr()


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not q.is_cuda:
        attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return attended, _column(lse, q)
    found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return found[0], _column(found[1], q)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return found[0], _column(found[1], q)


def _efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return found[0], _column(found[1], q)


def _fa3(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    interface: Any = importlib.import_module("flash_attn_interface")
    by_token = [part.transpose(1, 2) for part in (q, k, v)]
    found = interface.flash_attn_func(*by_token)
    if not isinstance(found, tuple):  # newer ones return it when asked
        try:
            found = interface.flash_attn_func(*by_token, return_attn_probs=True)
        except TypeError as error:
            raise NotAvailable(f"this FlashAttention-3 returns no log-sum-exp: {error}") from None
    return found[0].transpose(1, 2), _column(found[1], q)


_KERNELS: dict[str, _AttendLse] = {
    "flash": _flash,
    "cudnn": _cudnn,
    "efficient": _efficient,
    "fa3": _fa3,
}


def _column(lse: Tensor, q: Tensor) -> Tensor:
    """[b, H, N, 1]; some kernels return [b, H, N] and some round N up."""
    lse = lse.squeeze(-1) if lse.dim() == 4 else lse
    return lse[:, :, : q.shape[2]].unsqueeze(-1)
