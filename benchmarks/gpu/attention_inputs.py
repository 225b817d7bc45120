"""Inputs of one attention with references, what all ways give back, and the oracle of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bootpig_rt.benchmarks.gpu.shapes import KernelCase
from bootpig_rt.kernels import eager_ops

LARGEST_ERROR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of a way, relative to the float32 oracle by norm: several times what rounding alone gives."""


@dataclass(frozen=True)
class AttentionInputs:
    """Own tokens of B rows and a table of one entry.

    Attributes:
        q: [B, H, N, D], a view of [B, N, H, D], as the projections leave it.
        k: Likewise.
        v: Likewise.
        ref_k: [1, R, H, N, D].
        ref_v: [1, R, H, N, D].
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

    @property
    def nbytes(self) -> int:
        """Bytes that are read at least once."""
        return sum(part.nbytes for part in (self.q, self.k, self.v, self.ref_k, self.ref_v))

    def reference(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one reference for all guided rows, [E, H, N, D], no copy."""
        guided = self.q.shape[0] - self.plain_rows
        expanded = (
            part[0, index].unsqueeze(0).expand(guided, -1, -1, -1)
            for part in (self.ref_k, self.ref_v)
        )
        keys, values = expanded
        return keys, values


@dataclass(frozen=True)
class Attended:
    """What a way computes.

    Attributes:
        pieces: [b, N, H * D] each, together the B rows: with one reference the attention to own
            tokens and to the reference, with several that to own tokens alone.
        deltas: With several references [E, R, N, H * D]: attention with one reference minus that
            to own tokens, for the guided rows. What the merge reads after the output projection.
    """

    pieces: tuple[Tensor, ...]
    deltas: Tensor | None = None


Call: TypeAlias = Callable[[], Attended]


def make_inputs(
    case: KernelCase, device: str, dtype: torch.dtype, *, seed: int = 0
) -> AttentionInputs:
    """Random inputs of a case, the same for the same seed."""
    level, references = case.level, case.references
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator).to(dtype)

    def own() -> Tensor:
        return draw(case.rows, level.tokens, level.heads, level.head_dim).transpose(1, 2)

    def table() -> Tensor:
        return draw(1, references, level.heads, level.tokens, level.head_dim)

    refs = [[-1] * references] * case.plain_rows + [list(range(references))] * case.guided_rows
    return AttentionInputs(
        own(),
        own(),
        own(),
        table(),
        table(),
        torch.tensor(refs, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        case.plain_rows,
    )


def oracle(inputs: AttentionInputs) -> Attended:
    """The same in float32, row by row, with products that round to float32."""
    q, k, v, ref_k, ref_v = (
        part.float() for part in (inputs.q, inputs.k, inputs.v, inputs.ref_k, inputs.ref_v)
    )
    refs, step = inputs.ref_of_row, inputs.step
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if inputs.references == 1:
            return Attended((eager_ops.attention(q, k, v, ref_k, ref_v, refs, step),))
        plain, deltas = eager_ops.attention_deltas(
            q, k, v, ref_k, ref_v, refs, step, inputs.plain_rows
        )
    return Attended((plain,), deltas)


def error_of(found: Attended, expected: Attended) -> float:
    """The larger relative error, by norm, of outputs and deltas; NaN where one is NaN."""
    errors = [_relative(torch.cat(found.pieces), torch.cat(expected.pieces))]
    if expected.deltas is not None:
        if found.deltas is None:
            return float("nan")
        errors.append(_relative(found.deltas, expected.deltas))
    return float(torch.tensor(errors).max())  # max of Python hides NaN


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    difference = (found.float() - expected).norm()
    return float(difference / expected.norm())
