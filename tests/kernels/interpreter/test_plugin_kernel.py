"""The kernel of the TensorRT plugin in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.launch import LOG2_E
from bootpig_rt.kernels.plugin_kernel import reference_attention_plugin_kernel
from bootpig_rt.kernels.plugin_numbers import PLUGIN_NUMBERS
from bootpig_rt.kernels.tiles import padded


def _run(*inputs: torch.Tensor) -> torch.Tensor:
    q = inputs[0]
    out = torch.full_like(q, float("nan"))
    numbers = [inputs[source].shape[dim] for _, source, dim in PLUGIN_NUMBERS]
    rows, heads, tokens, head_dim = q.shape
    reference_attention_plugin_kernel[(-(-tokens // 64), heads, rows)](
        *inputs,
        *numbers,
        out,
        SCALE=head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim,
        BLOCK_D=padded(head_dim),
        BLOCK_M=64,
        BLOCK_N=32,
        PRECISION="tf32",
        WIDEN=False,
    )
    return out


@pytest.mark.parametrize(
    "refs", [[[3]], [[7], [0]], [[-1, 2], [5, 1]], [[0], [1], [2]]], ids=lambda refs: str(len(refs))
)
@pytest.mark.parametrize("head_dim", [16, 40])
def test_the_last_rows_read_their_references(
    make_case: Any, refs: list[list[int]], head_dim: int
) -> None:
    rows = 3
    filled = [[-1] * len(refs[0])] * (rows - len(refs)) + refs
    case = make_case(filled, entries=1, references=8, step=0, head_dim=head_dim)
    expected = eager_ops.attention(*case.arguments)
    out = _run(
        *(tensor.contiguous() for tensor in case.arguments[:3]),
        case.ref_k[0],
        case.ref_v[0],
        torch.tensor(refs, dtype=torch.int64),
    )
    torch.testing.assert_close(out.transpose(1, 2).flatten(2), expected, rtol=1e-5, atol=1e-5)


def test_an_index_outside_the_table_is_not_followed(make_case: Any) -> None:
    case = make_case([[-1], [0]], entries=1, step=0, tokens=20, ref_tokens=13)
    out = _run(
        *(tensor.contiguous() for tensor in case.arguments[:3]),
        case.ref_k[0],
        case.ref_v[0],
        torch.tensor([[4]]),
    )
    assert not out[0].isnan().any()
    assert out[1].isnan().all()
