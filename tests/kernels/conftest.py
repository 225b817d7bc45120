"""Random cases of attention, and the rule that a fused result is judged by."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

# Triton decides at import whether it interprets. `test_interpreter.py` runs these in a process of
# their own; in this one they would change how every other test sees Triton.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreter"]


@dataclass(frozen=True)
class Case:
    """Arguments of attention; `refs` is `ref_of_row` as lists."""

    q: Tensor
    k: Tensor
    v: Tensor
    ref_k: Tensor
    ref_v: Tensor
    ref_of_row: Tensor
    step: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """In the order of the operators."""
        return (self.q, self.k, self.v, self.ref_k, self.ref_v, self.ref_of_row, self.step)

    def run(self, function: Callable[..., Any], **settings: Any) -> Any:
        """An operator or a twin of one with these arguments."""
        return function(*self.arguments, **settings)

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another type."""
        q, k, v, ref_k, ref_v = (tensor.to(dtype) for tensor in self.arguments[:5])
        return Case(q, k, v, ref_k, ref_v, self.ref_of_row, self.step)


MakeCase = Callable[..., Case]


@pytest.fixture(scope="session")
def make_case() -> MakeCase:
    """Random arguments; q, k and v are views of `[B, N, H, D]`, as projections leave them."""

    def make(
        refs: Sequence[Sequence[int]],
        *,
        dtype: torch.dtype = torch.float32,
        heads: int = 2,
        tokens: int = 100,
        ref_tokens: int = 77,
        head_dim: int = 16,
        references: int = 4,
        entries: int = 2,
        step: int = 1,
        seed: int = 0,
        device: str = "cpu",
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        q, k, v = (draw(len(refs), tokens, heads, head_dim).transpose(1, 2) for _ in range(3))
        ref_k, ref_v = (draw(entries, references, heads, ref_tokens, head_dim) for _ in range(2))
        index = torch.tensor(refs, dtype=torch.int32, device=device)
        return Case(
            q, k, v, ref_k, ref_v, index, torch.tensor([step], dtype=torch.int32, device=device)
        )

    return make


@pytest.fixture(scope="session")
def assert_as_exact_as_eager() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Judge `out` by FlashAttention's rule and by its relative norm.

    The largest error against the exact result (float64 arithmetic on the same numbers) is at most
    twice that of eager torch in the type of `out`, and the norm of the error at most 1.5 times.
    """

    def check(out: Tensor, eager: Tensor, oracle: Tensor) -> None:
        assert out.shape == eager.shape == oracle.shape
        assert out.dtype == eager.dtype
        assert not out.isnan().any()
        error, allowed = ((x.double() - oracle.double()).abs() for x in (out, eager))
        # What rounding the oracle's own numbers costs: eager may be exact by luck.
        rounded = oracle.to(out.dtype)
        unit = ((rounded + 0.3 - 0.3) - rounded).double().abs().max()
        assert error.max() <= 2 * allowed.max() + 2 * unit
        norm = oracle.double().norm()
        floor = {torch.float16: 3e-4, torch.bfloat16: 4e-3, torch.float32: 5e-7}[out.dtype]
        assert error.norm() <= 1.5 * allowed.norm() + floor * norm

    return check
