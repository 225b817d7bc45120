"""Properties of the eager twins with a projection behind them, and the path that trains."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels import eager_ops
from bootpig_rt.models.attention import reference_self_attention, split_heads
from bootpig_rt.models.rows import plan_rows

MERGES: tuple[Merge, ...] = get_args(Merge)

HEADS, TOKENS, REF_TOKENS, HEAD_DIM, TABLE = 2, 6, 5, 4, 4
WIDTH = HEADS * HEAD_DIM


def _case(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = {name: draw(rows, HEADS, TOKENS, HEAD_DIM) for name in ("q", "k", "v")}
    table = {name: draw(TABLE, HEADS, REF_TOKENS, HEAD_DIM) for name in ("ref_k", "ref_v")}
    return {**own, **table, "out_weight": draw(WIDTH, WIDTH), "out_bias": draw(WIDTH)}


def _attend(
    case: dict[str, Tensor], refs: list[list[int]], merge: str, **changed: Tensor
) -> Tensor:
    """Reference self-attention of a batch, output projection included: [B, N, C]."""
    given = {**case, **changed}
    table = (given["ref_k"][None], given["ref_v"][None], torch.tensor(refs), torch.tensor([0]))
    own, weight, bias = (given["q"], given["k"], given["v"]), given["out_weight"], given["out_bias"]
    if merge == "concat":
        return eager_ops.attention(*own, *table) @ weight.T + bias
    plain, deltas = eager_ops.attention_deltas(*own, *table, 0)
    return eager_ops.merge(plain @ weight.T + bias, deltas @ weight.T, table[2], 0, merge)


def _merged(change: Tensor, merge: str) -> Tensor:
    """What the references of one row change, [R, N, C] -> [N, C]."""
    nothing = torch.zeros_like(change[:1])
    return eager_ops.merge(nothing, change[None], torch.arange(len(change))[None], 0, merge)[0]


@pytest.mark.parametrize("merge", MERGES)
def test_one_reference_is_one_softmax_over_own_and_reference_tokens(merge: str) -> None:
    case = _case(1)
    keys = torch.cat([case["k"][0], case["ref_k"][2]], dim=1)
    values = torch.cat([case["v"][0], case["ref_v"][2]], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(case["q"][0], keys, values)
    expected = expected.transpose(0, 1).flatten(1) @ case["out_weight"].T + case["out_bias"]
    torch.testing.assert_close(_attend(case, [[2]], merge)[0], expected)


@pytest.mark.parametrize("merge", ["argmax", "softmax", "mean"])
def test_duplicated_references_change_nothing(merge: str) -> None:
    case = _case(1)
    once = _attend(case, [[1]], merge)
    torch.testing.assert_close(_attend(case, [[1, 1, 1]], merge), once)


def test_concat_counts_a_duplicated_reference_twice() -> None:
    case = _case(1)
    once, twice = _attend(case, [[1]], "concat"), _attend(case, [[1, 1]], "concat")
    assert (once - twice).abs().max() > 1e-3


@pytest.mark.parametrize("merge", MERGES)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_permuting_references_changes_nothing(merge: str, order: list[int], seed: int) -> None:
    case = _case(1, seed)
    torch.testing.assert_close(_attend(case, [order], merge), _attend(case, [[0, 1, 2, 3]], merge))


@pytest.mark.parametrize("merge", MERGES)
def test_a_row_without_references_is_bitwise_independent_of_the_table(merge: str) -> None:
    case = _case(3)
    refs = [[-1, -1], [0, 1], [2, -1]]
    plain = _attend(case, refs, merge)
    changed = _attend(case, refs, merge, ref_k=case["ref_k"] * 7, ref_v=case["ref_v"] - 3)
    assert torch.equal(plain[0], changed[0])
    assert not torch.equal(plain[1], changed[1])
    poisoned = torch.full_like(case["ref_v"], float("nan"))
    assert torch.equal(_attend(case, refs, merge, ref_v=poisoned)[0], plain[0])


@pytest.mark.parametrize("merge", MERGES)
def test_a_reference_that_nobody_attends_to_changes_nothing(merge: str) -> None:
    case = _case(1)
    # All queries point one way and the reference's keys the other, far away.
    q = case["q"].abs() + 1
    ref_k = case["ref_k"].clone()
    ref_k[3] = -1000.0
    with_it = _attend(case, [[3]], merge, q=q, ref_k=ref_k)
    torch.testing.assert_close(with_it, _attend(case, [[-1]], merge, q=q))


def test_argmax_ignores_a_reference_without_effect() -> None:
    case = _case(1)
    q = case["q"].abs() + 1
    ref_k = case["ref_k"].clone()
    ref_k[3] = -1000.0
    both = _attend(case, [[3, 0]], "argmax", q=q, ref_k=ref_k)
    torch.testing.assert_close(both, _attend(case, [[0]], "argmax", q=q, ref_k=ref_k))


def test_argmax_takes_the_lowest_index_of_equal_norms() -> None:
    change = torch.tensor([[[3.0, 4.0]], [[-3.0, 4.0]], [[0.0, 5.0]]])
    assert _merged(change, "argmax").tolist() == [[3.0, 4.0]]
    assert _merged(change.flip(0), "argmax").tolist() == [[0.0, 5.0]]


def test_argmax_chooses_per_token_over_all_channels() -> None:
    change = torch.tensor([[[1.0, 1.0], [0.0, 9.0]], [[1.2, 0.0], [8.0, 8.0]]])
    assert _merged(change, "argmax").tolist() == [[1.0, 1.0], [8.0, 8.0]]


def test_softmax_weighs_by_the_norms() -> None:
    change = torch.tensor([[[3.0, 4.0]], [[0.0, 6.0]]], dtype=torch.float64)
    weights = torch.tensor([5.0, 6.0], dtype=torch.float64).softmax(0)
    expected = weights[0] * change[0] + weights[1] * change[1]
    torch.testing.assert_close(_merged(change, "softmax"), expected)


def test_the_norm_is_taken_after_the_output_projection() -> None:
    # The projection silences the channel in which reference 0 changes most.
    case = _case(1)
    silenced = case["out_weight"].clone()
    silenced[:, :HEAD_DIM] = 0
    ref_v = case["ref_v"].clone()
    ref_v[0, 0] += 1000.0
    only_other_head = _attend(case, [[0, 1]], "argmax", ref_v=ref_v, out_weight=silenced)
    without_outlier = _attend(case, [[0, 1]], "argmax", out_weight=silenced)
    torch.testing.assert_close(only_other_head, without_outlier)


@pytest.mark.parametrize("merge", ["median", "concat"])
def test_an_unknown_merge_is_refused(merge: str) -> None:
    with pytest.raises(ParameterError, match="expected argmax, softmax or mean"):
        _merged(torch.zeros(2, 1, 1), merge)


@pytest.mark.parametrize("merge", MERGES)
@settings(max_examples=25, deadline=None)
@given(
    refs=st.lists(
        st.lists(st.integers(-1, TABLE - 1), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    seed=st.integers(0, 99),
)
def test_the_fast_attention_equals_the_oracle(
    merge: Merge, refs: list[list[int]], seed: int
) -> None:
    torch.manual_seed(seed)
    attn: Any = Attention(query_dim=WIDTH, heads=HEADS, dim_head=HEAD_DIM).double()
    tokens = torch.randn(len(refs), TOKENS, WIDTH, dtype=torch.float64)
    table = torch.randn(2, TABLE, HEADS, REF_TOKENS, HEAD_DIM, dtype=torch.float64)
    plan = plan_rows(torch.tensor(refs), TABLE)
    with torch.no_grad():
        fast = plan.restore(
            reference_self_attention(
                attn, plan.sort(tokens), (table[0], table[1]), plan, merge=merge
            )
        )
        case = {
            "q": split_heads(attn.to_q(tokens), HEADS),
            "k": split_heads(attn.to_k(tokens), HEADS),
            "v": split_heads(attn.to_v(tokens), HEADS),
            "ref_k": table[0],
            "ref_v": table[1],
            "out_weight": attn.to_out[0].weight,
            "out_bias": attn.to_out[0].bias,
        }
        oracle = _attend(case, refs, merge)
    # float32 norms of the fast path may swap two references whose norms differ in the 7th digit.
    torch.testing.assert_close(fast, oracle, rtol=1e-5, atol=1e-6)


def test_pictures_are_added_with_a_number_a_channel() -> None:
    x, change = torch.full((1, 2, 1, 3), 5.0), torch.full((1, 2, 1, 3), 20.0)
    added = eager_ops.residual_add(x, change, torch.tensor([100.0, 200.0]))
    assert added[0, :, 0].tolist() == [[125.0] * 3, [225.0] * 3]
