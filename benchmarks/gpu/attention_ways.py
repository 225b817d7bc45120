"""Ways to compute attention with references: the fused kernel, and what stock libraries offer.

All take the same inputs and give the same numbers. A composition gives what the next layer reads,
one tensor of all rows; its copies are part of its time. `beside` ways are no compositions: they
find keys and values of row and reference already side by side in memory, which no composition of
stock kernels has for nothing, and leave their rows apart. They are bounds.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bootpig_rt.benchmarks.gpu.attention_inputs import Attended, AttentionInputs, Call
from bootpig_rt.benchmarks.gpu.attention_merge import attention_by_merge
from bootpig_rt.benchmarks.gpu.timer import NotAvailable
from bootpig_rt.kernels import ops

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v [b, H, N, D] -> [b, H, N, D]."""

Kind: TypeAlias = Literal["ours", "published", "composition", "bound"]


@dataclass(frozen=True)
class AttentionWay:
    """One way.

    Attributes:
        name: Of its rows.
        label: For people.
        kind: `composition`: stock kernels put together; `bound`: less than a whole composition.
        prepare: From inputs to a call; what it does ahead is not part of the time.
        why_not: Why it cannot run on a device; None where it can.
        compiles: It compiles for seconds on each new shape, so it runs on the key shapes alone.
    """

    name: str
    label: str
    kind: Kind
    prepare: Callable[[AttentionInputs], Call]
    why_not: Callable[[str], str | None]
    compiles: bool = False

    def remark(self, device: str) -> str:
        """What to know about its rows on a device."""
        is_twin = self.name == "fused" and not device.startswith("cuda")
        return "eager twin of the kernel" if is_twin else ""


def attention_ways() -> list[AttentionWay]:
    """All of them, ours first."""
    flash, cudnn, efficient = (
        functools.partial(_sdpa, backend)
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        )
    )
    return [
        AttentionWay("fused", "fused kernel (ours)", "ours", _fused, _anywhere),
        AttentionWay(
            "published", "published path, attention twice", "published", _published, _anywhere
        ),
        _composition("concat_sdpa", "concat + SDPA, torch's choice", _sdpa_auto, _anywhere),
        _composition("concat_sdpa_flash", "concat + SDPA flash", flash, _anywhere),
        _composition("concat_sdpa_cudnn", "concat + SDPA cuDNN", cudnn, _on_cuda),
        _composition("concat_sdpa_efficient", "concat + SDPA efficient", efficient, _on_cuda),
        _merged("lse_merge_flash", "log-sum-exp merge of flash", "flash", _anywhere),
        _merged("lse_merge_cudnn", "log-sum-exp merge of cuDNN", "cudnn", _on_cuda),
        _merged("lse_merge_efficient", "log-sum-exp merge of efficient", "efficient", _on_cuda),
        _composition("concat_xformers", "concat + xformers", _xformers, _with("xformers")),
        _composition("concat_flex", "concat + FlexAttention", _flex, _anywhere, compiles=True),
        _composition("concat_fa3", "concat + FlashAttention-3", _fa3, _with(FA3)),
        _merged("lse_merge_fa3", "log-sum-exp merge of FlashAttention-3", "fa3", _with(FA3)),
        _bound("beside_sdpa_flash", "SDPA flash, keys side by side", flash, _anywhere),
        _bound("beside_sdpa_cudnn", "SDPA cuDNN, keys side by side", cudnn, _on_cuda),
        _bound("beside_sdpa_efficient", "SDPA efficient, keys side by side", efficient, _on_cuda),
    ]


FA3 = "flash_attn_interface"


def _anywhere(device: str) -> str | None:
    return None


def _on_cuda(device: str) -> str | None:
    return None if device.startswith("cuda") else "torch has this kernel for CUDA alone"


def _with(package: str) -> Callable[[str], str | None]:
    """Needs a package that has kernels for CUDA alone."""

    def why_not(device: str) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
        return None if device.startswith("cuda") else f"{package} computes on CUDA alone"

    return why_not


def _composition(
    name: str,
    label: str,
    attend: Attend,
    why_not: Callable[[str], str | None],
    *,
    compiles: bool = False,
) -> AttentionWay:
    prepare = functools.partial(_by_concat, attend)
    return AttentionWay(name, label, "composition", prepare, why_not, compiles)


def _bound(
    name: str, label: str, attend: Attend, why_not: Callable[[str], str | None]
) -> AttentionWay:
    return AttentionWay(name, label, "bound", functools.partial(_side_by_side, attend), why_not)


def _merged(
    name: str, label: str, kernel: str, why_not: Callable[[str], str | None]
) -> AttentionWay:
    prepare = functools.partial(attention_by_merge, kernel)
    return AttentionWay(name, label, "composition", prepare, why_not)


def join_heads(attended: Tensor) -> Tensor:
    """[b, H, N, D] -> [b, N, H * D]; no copy where a kernel wrote [b, N, H, D]."""
    return attended.transpose(1, 2).flatten(-2)


def _fused(inputs: AttentionInputs) -> Call:
    table = (inputs.ref_k, inputs.ref_v, inputs.ref_of_row, inputs.step)
    own = (inputs.q, inputs.k, inputs.v)

    def one() -> Attended:
        return Attended((ops.reference_attention(*own, *table, checks_indices=False),))

    def several() -> Attended:
        plain, deltas = ops.reference_attention_deltas(
            *own, *table, first_delta_row=inputs.plain_rows, checks_indices=False
        )
        return Attended((plain,), deltas)

    return one if inputs.references == 1 else several


def _by_concat(attend: Attend, inputs: AttentionInputs) -> Call:
    """Keys and values of the guided rows are joined with those of their reference."""
    first = inputs.plain_rows
    q, k, v = inputs.q, inputs.k, inputs.v

    def with_reference(index: int) -> Tensor:
        ref_k, ref_v = inputs.reference(index)
        keys = torch.cat([k[first:], ref_k], dim=2)
        values = torch.cat([v[first:], ref_v], dim=2)
        return join_heads(attend(q[first:], keys, values))

    def one() -> Attended:
        plain = join_heads(attend(q[:first], k[:first], v[:first]))
        return Attended((torch.cat([plain, with_reference(0)]),))

    def several() -> Attended:
        plain = join_heads(attend(q, k, v))
        return Attended((plain,), _deltas(plain[first:], with_reference, inputs.references))

    return one if inputs.references == 1 else several


def _published(inputs: AttentionInputs) -> Call:
    """Every row without the reference, then the guided rows again with it, and the difference.

    The published code also projects keys and values of all tokens for each reference, which is
    not counted here.
    """
    first = inputs.plain_rows
    q, k, v = inputs.q, inputs.k, inputs.v

    def with_reference(index: int) -> Tensor:
        ref_k, ref_v = inputs.reference(index)
        keys = torch.cat([k[first:], ref_k], dim=2)
        values = torch.cat([v[first:], ref_v], dim=2)
        return join_heads(_sdpa_auto(q[first:], keys, values))

    def run() -> Attended:
        plain = join_heads(_sdpa_auto(q, k, v))
        deltas = _deltas(plain[first:], with_reference, inputs.references)
        if inputs.references > 1:
            return Attended((plain,), deltas)
        return Attended((torch.cat([plain[:first], plain[first:] + deltas[:, 0]]),))

    return run


def _deltas(plain: Tensor, with_reference: Callable[[int], Tensor], references: int) -> Tensor:
    deltas = plain.new_empty(len(plain), references, *plain.shape[1:])
    for index in range(references):
        torch.sub(with_reference(index), plain, out=deltas[:, index])
    return deltas


def _side_by_side(attend: Attend, inputs: AttentionInputs) -> Call:
    first = inputs.plain_rows
    q, k, v = inputs.q, inputs.k, inputs.v
    joined = []
    for index in range(inputs.references):
        ref_k, ref_v = inputs.reference(index)
        joined.append((torch.cat([k[first:], ref_k], dim=2), torch.cat([v[first:], ref_v], dim=2)))

    def one() -> Attended:
        plain = join_heads(attend(q[:first], k[:first], v[:first]))
        return Attended((plain, join_heads(attend(q[first:], *joined[0]))))

    def several() -> Attended:
        plain = join_heads(attend(q, k, v))

        def with_reference(index: int) -> Tensor:
            return join_heads(attend(q[first:], *joined[index]))

        return Attended((plain,), _deltas(plain[first:], with_reference, inputs.references))

    return one if inputs.references == 1 else several


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _sdpa_auto(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    xops: Any = importlib.import_module("xformers.ops")
    by_token = (part.transpose(1, 2) for part in (q, k, v))
    attended: Tensor = xops.memory_efficient_attention(*by_token)
    return attended.transpose(1, 2)


def _fa3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    interface: Any = importlib.import_module(FA3)
    found = interface.flash_attn_func(*(part.transpose(1, 2) for part in (q, k, v)))
    attended: Tensor = found[0] if isinstance(found, tuple) else found
    return attended.transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.is_cuda:
        attended: Tensor = _compiled_flex()(q, k, v)
        return attended
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():  # it says that it is slow where it is not compiled
        warnings.simplefilter("ignore")
        slow: Any = flex_attention(q, k, v)
    if not isinstance(slow, Tensor):
        raise NotAvailable("this FlexAttention does not return a tensor")
    return slow


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    from bootpig_rt.benchmarks.gpu.attention_merge import allow_many_shapes

    allow_many_shapes()
    return torch.compile(flex_attention, dynamic=False)
