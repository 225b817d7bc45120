"""The attention kernel in Triton's interpreter, against the exact result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.launch import launch_attention
from bootpig_rt.kernels.tiles import Tile
from bootpig_rt.kernels.toolchain import triton_version

# No reference, one, or all; slots with holes; a batch of several users.
REFS_OF_COUNT = {
    0: [[-1], [-1]],
    1: [[-1], [2], [0]],
    2: [[-1, -1], [3, 1]],
    3: [[-1, -1, -1], [0, 1, 2]],
    4: [[2, -1, -1, -1], [0, 1, 2, 3]],
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def _exact(case: Any) -> Any:
    return case.to(torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", REFS_OF_COUNT)
def test_joint_attention_with_0_to_4_references(
    make_case: Any, assert_as_exact_as_eager: Any, count: int, dtype: torch.dtype
) -> None:
    case = make_case(REFS_OF_COUNT[count], dtype=dtype)
    out, deltas = launch_attention(*case.arguments)
    assert deltas.numel() == 0
    eager = eager_ops.attention(*case.arguments)
    assert_as_exact_as_eager(out, eager, _exact(case).run(eager_ops.attention))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 4])
def test_separate_attention_writes_own_attention_and_changes(
    make_case: Any, assert_as_exact_as_eager: Any, count: int, dtype: torch.dtype
) -> None:
    case = make_case(REFS_OF_COUNT[count], dtype=dtype)
    out, deltas = case.run(launch_attention, first_delta_row=1)
    eager, eager_deltas = case.run(eager_ops.attention_deltas, first_delta_row=1)
    oracle, oracle_deltas = _exact(case).run(eager_ops.attention_deltas, first_delta_row=1)
    assert_as_exact_as_eager(out, eager, oracle)
    assert_as_exact_as_eager(deltas, eager_deltas, oracle_deltas)


@pytest.mark.parametrize(("tokens", "ref_tokens"), [(64, 96), (33, 1), (1, 32), (64, 31), (31, 64)])
@pytest.mark.parametrize("first_delta_row", [None, 0])
def test_any_number_of_tokens(
    make_case: Any,
    assert_as_exact_as_eager: Any,
    tokens: int,
    ref_tokens: int,
    first_delta_row: int | None,
) -> None:
    case = make_case([[-1], [1]], dtype=torch.float16, tokens=tokens, ref_tokens=ref_tokens)
    out, deltas = case.run(launch_attention, first_delta_row=first_delta_row)
    rows = 2 if first_delta_row is None else first_delta_row
    eager, eager_deltas = case.run(eager_ops.attention_deltas, first_delta_row=rows)
    oracle, oracle_deltas = _exact(case).run(eager_ops.attention_deltas, first_delta_row=rows)
    assert_as_exact_as_eager(out, eager, oracle)
    if rows == 0:
        assert_as_exact_as_eager(deltas, eager_deltas, oracle_deltas)


@pytest.mark.parametrize("head_dim", [24, 40, 64, 80, 128])
def test_head_dims_that_are_no_powers_of_two(
    make_case: Any, assert_as_exact_as_eager: Any, head_dim: int
) -> None:
    case = make_case([[0], [1]], dtype=torch.float16, head_dim=head_dim, tokens=40, ref_tokens=40)
    out, _ = launch_attention(*case.arguments)
    eager = eager_ops.attention(*case.arguments)
    assert_as_exact_as_eager(out, eager, _exact(case).run(eager_ops.attention))


@pytest.mark.parametrize(("heads", "tokens"), [(10, 128), (20, 64)])
@pytest.mark.parametrize("first_delta_row", [None, 0])
def test_heads_of_stable_diffusion_xl(
    make_case: Any,
    assert_as_exact_as_eager: Any,
    heads: int,
    tokens: int,
    first_delta_row: int | None,
) -> None:
    """Its two levels, 10 heads over 4096 tokens and 20 over 1024, with whole tiles of them."""
    sizes = {"heads": heads, "head_dim": 64, "tokens": tokens, "ref_tokens": tokens}
    case = make_case([[-1], [0]], dtype=torch.float16, **sizes)
    out, _ = case.run(launch_attention, first_delta_row=first_delta_row)
    rows = 2 if first_delta_row is None else first_delta_row
    eager, _ = case.run(eager_ops.attention_deltas, first_delta_row=rows)
    oracle, _ = _exact(case).run(eager_ops.attention_deltas, first_delta_row=rows)
    assert_as_exact_as_eager(out, eager, oracle)


@pytest.mark.parametrize("first_delta_row", [None, 0])
def test_an_empty_reference_has_no_effect(make_case: Any, first_delta_row: int | None) -> None:
    case = make_case([[0, 1]], ref_tokens=0, tokens=40)
    out, deltas = case.run(launch_attention, first_delta_row=first_delta_row)
    without = make_case([[-1, -1]], ref_tokens=0, tokens=40)
    assert torch.equal(out, launch_attention(*without.arguments)[0])
    assert not deltas.any()


@pytest.mark.parametrize("first_delta_row", [None, 1])
def test_nothing_is_read_out_of_bounds(make_case: Any, first_delta_row: int | None) -> None:
    # The tensors lie in larger ones full of NaN: whatever is read beyond an end shows.
    case = make_case([[-1, -1], [2, 0]], head_dim=24, tokens=50, ref_tokens=37)
    expected = case.run(launch_attention, first_delta_row=first_delta_row)
    q, k, v = (_among_nan(tensor.transpose(1, 2)).transpose(1, 2) for tensor in case.arguments[:3])
    ref_k, ref_v = (_among_nan(tensor) for tensor in case.arguments[3:5])
    found = launch_attention(q, k, v, ref_k, ref_v, case.ref_of_row, case.step, first_delta_row)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def _among_nan(tensor: Tensor) -> Tensor:
    margin = 8192
    flat = torch.full((tensor.numel() + 2 * margin,), float("nan"), dtype=tensor.dtype)
    flat[margin:-margin] = tensor.reshape(-1)
    return flat[margin:-margin].view(tensor.shape)


def test_unread_entries_and_references_may_hold_anything(make_case: Any) -> None:
    case = make_case([[-1], [2]], tokens=40, ref_tokens=40)
    expected, _ = launch_attention(*case.arguments)
    for table in (case.ref_k, case.ref_v):
        table[0] = float("nan")  # another step
        table[1, [0, 1, 3]] = float("nan")  # other references
    assert torch.equal(launch_attention(*case.arguments)[0], expected)


@pytest.mark.parametrize("first_delta_row", [None, 0])
@pytest.mark.parametrize(("step", "ref"), [(2, 0), (-1, 0), (0, 4), (0, -2)])
def test_an_index_outside_the_table_is_not_followed(
    make_case: Any, step: int, ref: int, first_delta_row: int | None
) -> None:
    case = make_case([[-1], [ref]], step=step, tokens=40, ref_tokens=40)
    out, deltas = case.run(launch_attention, first_delta_row=first_delta_row)
    assert not out[0].isnan().any()
    wrong = out[1] if first_delta_row is None else deltas[1]
    assert wrong.isnan().all()


@pytest.mark.skipif(
    (triton_version() or (0, 0)) < (3, 9), reason="its interpreter reads no descriptors"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "tokens", "ref_tokens"), [(16, 100, 77), (40, 64, 33)])
@pytest.mark.parametrize("first_delta_row", [None, 1])
def test_descriptors_give_what_pointers_give(
    make_case: Any,
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    ref_tokens: int,
    first_delta_row: int | None,
) -> None:
    case = make_case(
        REFS_OF_COUNT[4], dtype=dtype, head_dim=head_dim, tokens=tokens, ref_tokens=ref_tokens
    )
    plain, described = (
        case.run(
            launch_attention,
            first_delta_row=first_delta_row,
            tile=Tile(64, 32, 4, 2, uses_tma=uses_tma),
        )
        for uses_tma in (False, True)
    )
    assert torch.equal(described[0], plain[0])
    assert torch.equal(described[1], plain[1])
