"""The compiled kernels on a CUDA GPU: every tile of the table, and graphs that serve every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.launch import launch_attention, launch_merge
from bootpig_rt.kernels.launch_blocks import (
    launch_geglu,
    launch_group_norm,
    launch_layer_norm,
    launch_residual_add,
)
from bootpig_rt.kernels.ops import reference_attention
from bootpig_rt.kernels.tiles import Tile
from bootpig_rt.kernels.toolchain import has_tensor_descriptors

pytestmark = pytest.mark.gpu

REFS = [[-1, -1, -1, -1], [2, -1, -1, -1], [0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 128])
@pytest.mark.parametrize(("tokens", "ref_tokens"), [(100, 77), (64, 64), (1024, 1024), (576, 100)])
@pytest.mark.parametrize("first_row", [None, 1])
def test_the_compiled_kernel_is_as_exact_as_eager(
    make_case: Any,
    assert_as_exact_as_eager: Any,
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    ref_tokens: int,
    first_row: int | None,
) -> None:
    case = make_case(
        REFS, dtype=dtype, head_dim=head_dim, tokens=tokens, ref_tokens=ref_tokens, device="cuda"
    )
    out, deltas = case.run(launch_attention, first_delta_row=first_row)
    rows = len(REFS) if first_row is None else first_row
    eager, eager_deltas = case.run(eager_ops.attention_deltas, first_delta_row=rows)
    oracle, oracle_deltas = case.to(torch.float64).run(
        eager_ops.attention_deltas, first_delta_row=rows
    )
    assert_as_exact_as_eager(out, eager, oracle)
    if first_row is not None:
        assert_as_exact_as_eager(deltas, eager_deltas, oracle_deltas)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 128])
@pytest.mark.parametrize(("tokens", "ref_tokens"), [(100, 77), (256, 512), (576, 100)])
@pytest.mark.parametrize("first_row", [None, 1])
def test_the_copy_engine_loads_what_plain_loads_do(
    make_case: Any,
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    ref_tokens: int,
    first_row: int | None,
) -> None:
    if torch.cuda.get_device_capability() < (9, 0) or not has_tensor_descriptors():
        pytest.skip("no copy engine on this GPU, or none in this Triton")
    case = make_case(
        REFS, dtype=dtype, head_dim=head_dim, tokens=tokens, ref_tokens=ref_tokens, device="cuda"
    )
    plain, copied = (
        case.run(
            launch_attention,
            first_delta_row=first_row,
            tile=Tile(64, 64, 4, 2, uses_tma=uses_tma),
        )
        for uses_tma in (False, True)
    )
    for one, other in zip(copied, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["argmax", "softmax", "mean"])
@pytest.mark.parametrize("channels", [320, 640, 1280])
def test_the_compiled_merge_equals_its_twin(mode: str, channels: int) -> None:
    torch.manual_seed(0)
    projected = torch.randn(3, 100, channels, device="cuda")
    change = torch.randn(2, 4, 100, channels, device="cuda")
    refs = torch.tensor(REFS, dtype=torch.int32, device="cuda")
    merged = launch_merge(projected, change, refs, 1, mode)
    torch.testing.assert_close(merged, eager_ops.merge(projected, change, refs, 1, mode))


def _assert_no_worse(found: Tensor, eager: Tensor, oracle: Tensor) -> None:
    """The error against float64 is at most that of torch's own kernels, and a tenth."""
    error, allowed = ((one.double() - oracle).norm() for one in (found, eager))
    assert error <= 1.1 * allowed + 1e-6 * oracle.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("channels", "side"),
    [(320, 64), (640, 32), (960, 64), (1280, 8), (2560, 16), (1920, 17), (128, 256)],
)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("has_offset", [False, True])
def test_the_compiled_group_norm_is_as_exact_as_eager(
    dtype: torch.dtype, channels: int, side: int, silu: bool, has_offset: bool
) -> None:
    torch.manual_seed(0)
    x = (3 + torch.randn(3, channels, side, side, device="cuda")).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(channels, device="cuda").to(dtype) for _ in range(2))
    offset = torch.randn(3, channels, device="cuda").to(dtype) if has_offset else None
    found = launch_group_norm(x, weight, bias, 32, 1e-5, silu, offset)
    eager = eager_ops.group_norm(x, weight, bias, 32, 1e-5, silu, offset)
    wide = None if offset is None else offset.double()
    oracle = eager_ops.group_norm(x.double(), weight.double(), bias.double(), 32, 1e-5, silu, wide)
    assert found.is_contiguous(memory_format=torch.channels_last)
    _assert_no_worse(found, eager, oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [320, 640, 1280, 40])
def test_the_compiled_layer_norm_geglu_and_sum_are_as_exact_as_eager(
    dtype: torch.dtype, channels: int
) -> None:
    torch.manual_seed(0)
    x, change = (torch.randn(3, 257, channels, device="cuda").to(dtype) for _ in range(2))
    weight, bias = (torch.randn(channels, device="cuda").to(dtype) for _ in range(2))
    total, found = launch_layer_norm(x, change, weight, bias, 1e-5)
    eager_total, eager = eager_ops.add_layer_norm(x, change, weight, bias, 1e-5)
    assert torch.equal(total, eager_total)
    _, oracle = eager_ops.add_layer_norm(total.double(), None, weight.double(), bias.double(), 1e-5)
    _assert_no_worse(found, eager, oracle)
    both = torch.cat([x, change], dim=-1)
    _assert_no_worse(launch_geglu(both), eager_ops.geglu(both), eager_ops.geglu(both.double()))
    x, change = (each.unflatten(1, (257, 1)).permute(0, 3, 1, 2) for each in (x, change))
    oracle = eager_ops.residual_add(x.double(), change.double(), bias.double())
    eager = eager_ops.residual_add(x, change, bias)
    _assert_no_worse(launch_residual_add(x, change, bias), eager, oracle)


def test_one_captured_graph_serves_every_step(make_case: Any) -> None:
    case = make_case([[-1], [1], [1]], dtype=torch.float16, head_dim=64, entries=3, device="cuda")
    case.run(reference_attention)  # compiled ahead of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = case.run(reference_attention)
    for step in range(3):
        case.step.fill_(step)
        graph.replay()
        torch.testing.assert_close(out, case.run(reference_attention), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch itself
def test_torch_compile_with_inductor_keeps_the_kernel(make_case: Any) -> None:
    case = make_case([[-1], [1]], dtype=torch.float16, head_dim=64, device="cuda")
    compiled = torch.compile(reference_attention, fullgraph=True)
    torch.testing.assert_close(case.run(compiled), case.run(reference_attention))
