"""Attention with references: ours, the published path, and what stock libraries offer.

All ways take the inputs of one self-attention and give the same numbers: what the next layer reads,
one tensor of all rows. Copies are part of a way's time. What is measured is the attention of all
self-attentions of a step, in the order of the U-Net, so that no layer finds its inputs in a cache.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bootpig_rt.benchmarks.way import Ready, Unavailable, Way
from bootpig_rt.kernels import eager_ops, ops

DIFFERENCES = {torch.float32: 4e-7, torch.float16: 2.8e-4, torch.bfloat16: 2.3e-3}
"""What ways were measured to differ from the float32 oracle by, relative to its norm. A gate allows
five times as much."""

GATE = 5.0
_FA3 = "flash_attn_interface"

Shape: TypeAlias = tuple[int, int, int]
"""Heads H, tokens N, head dim D of a self-attention."""


@dataclass(frozen=True)
class Layer:
    """Inputs of one self-attention: own tokens of B rows, and a table of one entry.

    Attributes:
        q: [B, H, N, D], a view of [B, N, H, D], as the projections leave it; `k` and `v` likewise.
        ref_k: [1, R, H, N, D]; `ref_v` likewise.
        ref_of_row: int32 [B, R], -1 in the plain rows, which come first.
        step: int32 [1], zero.
        plain_rows: Rows ahead of the guided ones.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ref_k: Tensor
    ref_v: Tensor
    ref_of_row: Tensor
    step: Tensor
    plain_rows: int

    @property
    def references(self) -> int:
        """R."""
        return int(self.ref_of_row.shape[1])

    def reference(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one reference for all guided rows, [E, H, N, D], no copy."""
        guided = self.q.shape[0] - self.plain_rows
        keys, values = (
            part[0, index].unsqueeze(0).expand(guided, -1, -1, -1)
            for part in (self.ref_k, self.ref_v)
        )
        return keys, values


Attended: TypeAlias = tuple[Tensor, ...]
"""[B, N, H * D], with one reference the attention to own tokens and to it; with several that to
own tokens alone, and then what each reference changes in the guided rows, [E, R, N, H * D]."""
Attention: TypeAlias = Callable[[Layer], Attended]
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v [b, H, N, D] -> [b, H, N, D]."""


def make_layer(
    shape: Shape, *, references: int, pictures: int, device: str, dtype: torch.dtype, seed: int = 0
) -> Layer:
    """Random inputs: of each picture one plain row and two guided ones that read all references."""
    heads, tokens, size = shape
    generator = torch.Generator(device).manual_seed(seed)
    rows, guided = 3 * pictures, 2 * pictures

    def draw(*sides: int) -> Tensor:
        return torch.randn(*sides, device=device, generator=generator).to(dtype)

    q, k, v = (draw(rows, tokens, heads, size).transpose(1, 2) for _ in range(3))
    ref_k, ref_v = (draw(1, references, heads, tokens, size) for _ in range(2))
    refs = [[-1] * references] * pictures + [list(range(references))] * guided
    return Layer(
        q, k, v, ref_k, ref_v,
        torch.tensor(refs, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        pictures,
    )  # fmt: skip


def attention_ways(
    case: str, shapes: Sequence[Shape], *, references: int, pictures: int, device: str,
    dtype: torch.dtype,
) -> list[Way]:  # fmt: skip
    """All ways on one case, the published one first.

    Args:
        case: Beginning of the names, and group of the rows.
        shapes: Of the self-attentions of a step, in order.
        references: R.
        pictures: Of the batch.
        device: `cpu` or `cuda`.
        dtype: Of all ways.
    """

    @functools.cache
    def layers() -> list[Layer]:
        return [
            make_layer(shape, references=references, pictures=pictures, device=device,
                       dtype=dtype, seed=seed)
            for seed, shape in enumerate(shapes)
        ]  # fmt: skip

    def make(attention: Attention, package: str | None, is_cuda_only: bool) -> Ready:
        if package is not None and importlib.util.find_spec(package) is None:
            raise Unavailable(f"the package {package} is not installed")
        if is_cuda_only and not device.startswith("cuda"):
            raise Unavailable("this kernel is for CUDA alone")
        run = functools.partial(_run_all, attention, layers())
        return Ready(
            _recorded(run) if device.startswith("cuda") else run,
            difference=lambda: largest_error(attention, layers()),
            limit=GATE * DIFFERENCES[dtype],
        )

    return [
        Way(f"{case} {name}", label, functools.partial(make, attention, package, is_cuda_only),
            group=case)
        for name, label, attention, package, is_cuda_only in _ways(device)
    ]  # fmt: skip


def _ways(device: str) -> list[tuple[str, str, Attention, str | None, bool]]:
    """Name, label, function, the package that it needs, and whether it needs CUDA."""
    ours = "ours: fused kernel" if device.startswith("cuda") else "ours: the kernel's eager twin"
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    found: list[tuple[str, str, Attention, str | None, bool]] = [
        ("published", "published path, attention twice", _published, None, False),
        ("ours", ours, _ours, None, False),
        ("concat", "joined keys + SDPA, torch's choice", _joined(_sdpa), None, False),
    ]
    for name, backend in backends.items():
        only = name != "flash"
        attend = functools.partial(_sdpa_by, backend)
        merge = functools.partial(_merged, functools.partial(_lse_of, name))
        found += [
            (f"concat_{name}", f"joined keys + SDPA, {name}", _joined(attend), None, only),
            (f"merge_{name}", f"log-sum-exp merge of {name}", merge, None, only),
        ]
    fa3 = functools.partial(_merged, _lse_fa3)
    return [
        *found,
        ("concat_flex", "joined keys + FlexAttention", _joined(_flex), None, True),
        ("concat_xformers", "joined keys + xformers", _joined(_xformers), "xformers", True),
        ("concat_fa3", "joined keys + FlashAttention-3", _joined(_fa3), _FA3, True),
        ("merge_fa3", "log-sum-exp merge of FlashAttention-3", fa3, _FA3, True),
    ]


def _run_all(attention: Attention, layers: Sequence[Layer]) -> None:
    with torch.no_grad():
        for layer in layers:
            attention(layer)


def _recorded(run: Callable[[], None]) -> Callable[[], object]:
    """The same as a CUDA graph, so that the time is the device's; as it is where that fails."""
    for _ in range(2):  # libraries load, kernels are compiled and chosen
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a library that waits for the device: the host launches it then
        torch.cuda.synchronize()
        return run
    return graph.replay


def largest_error(attention: Attention, layers: Sequence[Layer]) -> float:
    """The largest relative error against float32, by norm, over layers of different shapes."""
    errors = []
    for layer in {layer.q.shape: layer for layer in layers}.values():
        with torch.no_grad():
            # The merge writes into what it attended to, never into its inputs.
            pairs = zip(attention(layer), _oracle(layer), strict=True)
            errors += [float((a.float() - b).norm() / b.norm()) for a, b in pairs]
    return float(torch.tensor(errors).max())  # max of Python hides NaN


def _oracle(layer: Layer) -> Attended:
    q, k, v, ref_k, ref_v = (
        part.float() for part in (layer.q, layer.k, layer.v, layer.ref_k, layer.ref_v)
    )
    with sdpa_kernel(SDPBackend.MATH):
        if layer.references == 1:
            return (eager_ops.attention(q, k, v, ref_k, ref_v, layer.ref_of_row, layer.step),)
        return eager_ops.attention_deltas(
            q, k, v, ref_k, ref_v, layer.ref_of_row, layer.step, layer.plain_rows
        )


def _ours(layer: Layer) -> Attended:
    inputs = (layer.q, layer.k, layer.v, layer.ref_k, layer.ref_v, layer.ref_of_row, layer.step)
    if layer.references == 1:
        return (ops.reference_attention(*inputs, checks_indices=False),)
    return ops.reference_attention_deltas(
        *inputs, first_delta_row=layer.plain_rows, checks_indices=False
    )


def _published(layer: Layer) -> Attended:
    """Every row without the reference, then the guided rows again with each, and the difference.

    The published code also projects keys and values of all tokens for each reference, which is
    not counted here.
    """
    first = layer.plain_rows
    plain = _by_token(_sdpa(layer.q, layer.k, layer.v))
    deltas = _deltas(layer, plain[first:], functools.partial(_with_reference, _sdpa, layer))
    if layer.references > 1:
        return plain, deltas
    return (torch.cat([plain[:first], plain[first:] + deltas[:, 0]]),)


def _joined(attend: Attend) -> Attention:
    """Keys and values of the guided rows are joined with those of their reference."""

    def attention(layer: Layer) -> Attended:
        first = layer.plain_rows
        q, k, v = layer.q, layer.k, layer.v
        if layer.references == 1:
            plain = _by_token(attend(q[:first], k[:first], v[:first]))
            return (torch.cat([plain, _with_reference(attend, layer, 0)]),)
        plain = _by_token(attend(q, k, v))
        changed = functools.partial(_with_reference, attend, layer)
        return plain, _deltas(layer, plain[first:], changed)

    return attention


def _with_reference(attend: Attend, layer: Layer, index: int) -> Tensor:
    first, (ref_k, ref_v) = layer.plain_rows, layer.reference(index)
    keys = torch.cat([layer.k[first:], ref_k], dim=2)
    values = torch.cat([layer.v[first:], ref_v], dim=2)
    return _by_token(attend(layer.q[first:], keys, values))


def _deltas(layer: Layer, plain: Tensor, with_reference: Callable[[int], Tensor]) -> Tensor:
    deltas = plain.new_empty(len(plain), layer.references, *plain.shape[1:])
    for index in range(layer.references):
        torch.sub(with_reference(index), plain, out=deltas[:, index])
    return deltas


def _by_token(attended: Tensor) -> Tensor:
    """[b, H, N, D] -> [b, N, H * D]; no copy where a kernel wrote [b, N, H, D]."""
    return attended.transpose(1, 2).flatten(-2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _sdpa_by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    xops: Any = importlib.import_module("xformers.ops")
    by_token = (part.transpose(1, 2) for part in (q, k, v))
    attended: Tensor = xops.memory_efficient_attention(*by_token)
    return attended.transpose(1, 2)


def _fa3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    interface: Any = importlib.import_module(_FA3)
    found = interface.flash_attn_func(*(part.transpose(1, 2) for part in (q, k, v)))
    attended: Tensor = found[0] if isinstance(found, tuple) else found
    return attended.transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attended: Tensor = _compiled_flex()(q, k, v)
    return attended


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    _allow_many_shapes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(flex_attention, dynamic=False)


# With l and o of own tokens and l_r and o_r of a reference, log-sum-exp and attention, the
# attention to both is o + w (o_r - o), w = 1 / (1 + exp(l - l_r)). The merge runs in float32 and,
# on CUDA, compiled into one kernel: the strongest composition of stock kernels.

_AttendLse: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""q, k, v [b, H, N, D] -> attention [b, H, N, D] and its log-sum-exp, float32 [b, H, N, 1]."""


def _merged(attend: _AttendLse, layer: Layer) -> Attended:
    """One stock call for own tokens, one for each reference, merged by their log-sum-exps."""
    first, q = layer.plain_rows, layer.q
    merge = _compiled(_merge) if q.is_cuda else _merge
    own, own_lse = attend(q, layer.k, layer.v)
    plain = _by_token(own)
    guided, guided_lse = own[first:], own_lse[first:]
    if layer.references == 1:
        merge(guided, guided, guided_lse, *_reference_lse(attend, layer, 0), 1.0)
        shares = plain.data_ptr() == own.data_ptr()
        return (plain if shares else _by_token(own),)
    deltas = plain.new_empty(len(guided), layer.references, *plain.shape[1:])
    by_head = deltas.unflatten(-1, (q.shape[1], q.shape[3])).transpose(2, 3)
    for index in range(layer.references):
        parts = _reference_lse(attend, layer, index)
        merge(by_head[:, index], guided, guided_lse, *parts, 0.0)
    return plain, deltas


def _reference_lse(attend: _AttendLse, layer: Layer, index: int) -> tuple[Tensor, Tensor]:
    keys, values = layer.reference(index)
    try:
        return attend(layer.q[layer.plain_rows :], keys, values)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a kernel that takes no keys shared by a stride of zero
        return attend(layer.q[layer.plain_rows :], keys.contiguous(), values.contiguous())


def _merge(
    out: Tensor, own: Tensor, own_lse: Tensor, ref: Tensor, ref_lse: Tensor, keep: float
) -> None:
    """Write to `out` what the reference changes, on top of the attention to own tokens or not."""
    weight = torch.sigmoid(ref_lse - own_lse)
    out.copy_(keep * own.float() + weight * (ref.float() - own.float()))


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    _allow_many_shapes()
    return torch.compile(function, dynamic=True)


def _allow_many_shapes() -> None:
    """Torch gives up compiling after eight shapes of one function; a benchmark has more."""
    config: Any = importlib.import_module("torch._dynamo.config")
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(config, name):
            setattr(config, name, 256)
            return


def _lse_of(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """By one of torch's kernels, which on CUDA take a mask and whether to return the sums."""
    if not q.is_cuda:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    else:
        operator = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
        found = operator(q, k, v) if kernel == "flash" else operator(q, k, v, None, True)
    return found[0], _column(found[1], q)


def _lse_fa3(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    interface: Any = importlib.import_module(_FA3)
    by_token = [part.transpose(1, 2) for part in (q, k, v)]
    found = interface.flash_attn_func(*by_token)
    if not isinstance(found, tuple):  # newer ones return it when asked
        try:
            found = interface.flash_attn_func(*by_token, return_attn_probs=True)
        except TypeError as error:
            raise Unavailable(f"this FlashAttention-3 returns no log-sum-exp: {error}") from None
    return found[0].transpose(1, 2), _column(found[1], q)


def _column(lse: Tensor, q: Tensor) -> Tensor:
    """[b, H, N, 1]; some kernels return [b, H, N] and some round N up."""
    lse = lse.squeeze(-1) if lse.dim() == 4 else lse
    return lse[:, :, : q.shape[2]].unsqueeze(-1)
