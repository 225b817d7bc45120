"""The operators around attention: their twins and their refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.block_ops import add_layer_norm, geglu, group_norm, residual_add


def picture(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 3, 4).contiguous(memory_format=torch.channels_last)


def norm_arguments(**changes: Any) -> dict[str, Any]:
    usual = {"x": picture(), "weight": torch.randn(8), "bias": torch.randn(8)}
    return {
        **usual, "groups": 2, "eps": 1e-5, "silu": True, "offset": torch.randn(2, 8), **changes
    }  # fmt: skip


def tokens_arguments(**changes: Any) -> dict[str, Any]:
    usual = {"x": torch.randn(2, 5, 8), "change": torch.randn(2, 5, 8)}
    return {**usual, "weight": torch.randn(8), "bias": torch.randn(8), "eps": 1e-5, **changes}


def sum_arguments(**changes: Any) -> dict[str, Any]:
    return {"x": picture(), "change": picture(), "bias": torch.randn(8), **changes}


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (group_norm, eager_ops.group_norm, norm_arguments()),
    (group_norm, eager_ops.group_norm, norm_arguments(offset=None)),
    (add_layer_norm, eager_ops.add_layer_norm, tokens_arguments()),
    (add_layer_norm, eager_ops.add_layer_norm, tokens_arguments(change=None)),
    (geglu, eager_ops.geglu, {"x": torch.randn(2, 5, 8)}),
    (residual_add, eager_ops.residual_add, sum_arguments()),
]


@pytest.mark.parametrize(("operator", "twin", "arguments"), CASES)
def test_an_operator_is_its_twin(operator: Any, twin: Any, arguments: dict[str, Any]) -> None:
    found, expected = operator(**arguments), twin(**arguments)
    both = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for mine, theirs in both:
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups is 3, expected a divisor of 8"),
        ({"weight": torch.ones(7)}, r"weight has shape \[7\], expected \[8\]"),
        ({"x": torch.randn(2, 8, 3, 4)}, "expected channels-last"),
        ({"x": torch.randn(2, 8, 3)}, r"expected \[B, C, h, w\]"),
        ({"bias": torch.zeros(8).double()}, "float64"),
        ({"offset": torch.zeros(3, 8)}, r"offset has shape \[3, 8\]"),
        ({"offset": torch.zeros(8, 2).T}, "channels side by side"),
    ],
)
def test_a_wrong_group_norm_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        group_norm(**norm_arguments(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"change": torch.zeros(2, 4, 8)}, r"change has shape \[2, 4, 8\], expected that of x"),
        ({"change": torch.zeros(2, 5, 8).half()}, "change is float16 but x is float32"),
        ({"weight": torch.ones(4)}, r"weight has shape \[4\], expected \[8\]"),
        ({"x": torch.zeros(2, 0, 8)}, "without a 0"),
        ({"x": torch.zeros(2, 8, 5).transpose(1, 2)}, r"x has strides .*contiguous"),
    ],
)
def test_a_wrong_layer_norm_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        add_layer_norm(**tokens_arguments(**change))


def test_a_wrong_geglu_or_sum_is_refused() -> None:
    with pytest.raises(ParameterError, match="x has 7 channels, expected an even number"):
        geglu(torch.zeros(2, 7))
    with pytest.raises(ParameterError, match="change has shape"):
        residual_add(**sum_arguments(change=picture(4)))
    with pytest.raises(ParameterError, match="change has strides .* expected channels-last"):
        residual_add(**sum_arguments(change=torch.zeros(2, 8, 3, 4)))
