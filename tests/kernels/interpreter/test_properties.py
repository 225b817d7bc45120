"""What must hold for any input, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bootpig_rt.kernels.ops import (
    reference_attention,
    reference_attention_deltas,
    reference_merge,
)

MODES = ["argmax", "softmax", "mean"]
# Without the phase that shrinks a failure: it takes minutes in the interpreter.
FEW = settings(
    max_examples=3, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
SMALL = {"tokens": 20, "ref_tokens": 13, "heads": 2, "head_dim": 16}


def _merged(case: Any, mode: str, first_row: int = 0) -> Tensor:
    """The whole of RSA with a projection that mixes the heads."""
    generator = torch.Generator().manual_seed(1)
    width = case.q.shape[1] * case.q.shape[3]
    weight = torch.randn(width, width, generator=generator) / width**0.5
    own, deltas = reference_attention_deltas(*case.arguments, first_delta_row=first_row)
    return reference_merge(
        own @ weight.T,
        deltas @ weight.T,
        case.ref_of_row,
        first_delta_row=first_row,
        merge=mode,
    )


@pytest.mark.parametrize("mode", MODES)
@FEW
@given(ref=st.integers(0, 3), times=st.integers(2, 4), seed=st.integers(0, 99))
def test_duplicate_references_change_nothing(
    make_case: Any, mode: str, ref: int, times: int, seed: int
) -> None:
    once = _merged(make_case([[ref]], seed=seed, **SMALL), mode)
    several = _merged(make_case([[ref] * times], seed=seed, **SMALL), mode)
    if mode == "argmax":
        assert torch.equal(several, once)
    torch.testing.assert_close(several, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@FEW
@given(order=st.permutations([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_permuting_references_changes_nothing_but_ties(
    make_case: Any, mode: str, order: list[int], seed: int
) -> None:
    plain = _merged(make_case([[0, 1, 2, 3]], seed=seed, **SMALL), mode)
    permuted = _merged(make_case([order], seed=seed, **SMALL), mode)
    if mode == "argmax":  # random norms do not tie, and what is chosen is computed alike
        assert torch.equal(permuted, plain)
    torch.testing.assert_close(permuted, plain, rtol=1e-5, atol=1e-6)


@FEW
@given(seed=st.integers(0, 99))
def test_a_reference_with_zero_weight_has_no_effect(make_case: Any, seed: int) -> None:
    case = make_case([[3], [0]], seed=seed, **SMALL)
    case.q.abs_().add_(1.0)
    case.ref_k[1, 3] = -1000.0  # all queries point one way, these keys the other, far away
    without = make_case([[-1], [0]], seed=seed, **SMALL)
    without.q.abs_().add_(1.0)
    assert torch.equal(
        reference_attention(*case.arguments), reference_attention(*without.arguments)
    )
    _, deltas = reference_attention_deltas(*case.arguments, first_delta_row=0)
    assert not deltas[0].any()


@pytest.mark.parametrize("separate", [False, True])
@FEW
@given(seed=st.integers(0, 99), scale=st.floats(-8, 8))
def test_a_row_without_a_reference_never_depends_on_one(
    make_case: Any, separate: bool, seed: int, scale: float
) -> None:
    case = make_case([[-1, -1], [0, 1]], seed=seed, **SMALL)

    def attend() -> Tensor:
        if separate:
            return reference_attention_deltas(*case.arguments, first_delta_row=1)[0]
        return reference_attention(*case.arguments)

    plain = attend()
    case.ref_k.mul_(scale)
    case.ref_v.sub_(3.0)
    assert torch.equal(attend()[0], plain[0])
    case.ref_v.fill_(float("nan"))
    assert torch.equal(attend()[0], plain[0])


def test_own_attention_is_bitwise_that_of_a_row_without_references(make_case: Any) -> None:
    case = make_case([[0, 1]], **SMALL)
    own, _ = reference_attention_deltas(*case.arguments, first_delta_row=0)
    plain = make_case([[-1, -1]], **SMALL)
    assert torch.equal(own, reference_attention(*plain.arguments))
