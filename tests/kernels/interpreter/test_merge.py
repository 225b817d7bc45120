"""The merge kernel in Triton's interpreter, against its eager twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.launch import launch_merge

REFS = [[-1, -1, -1], [1, -1, -1], [3, 0, -1], [0, 1, 2]]
MODES = ["argmax", "softmax", "mean"]


def _tensors(
    dtype: torch.dtype, channels: int = 20, first_row: int = 1, tokens: int = 37
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = len(REFS)
    projected = torch.randn(rows, tokens, channels, generator=generator)
    change = torch.randn(rows - first_row, 3, tokens, channels, generator=generator)
    refs = torch.tensor(REFS, dtype=torch.int32)
    return projected.to(dtype), change.to(dtype), refs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", MODES)
def test_merges_equal_the_oracle(mode: str, dtype: torch.dtype) -> None:
    projected, change, refs = _tensors(dtype)
    merged = launch_merge(projected, change, refs, 1, mode)
    oracle = eager_ops.merge(projected.float(), change.float(), refs, 1, mode)
    # float32 inside: one rounding at the end is all.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(merged.float(), oracle, rtol=2 * unit, atol=4 * unit)


@pytest.mark.parametrize("mode", MODES)
def test_slots_without_a_reference_are_not_read(mode: str) -> None:
    projected, change, refs = _tensors(torch.float32)
    expected = launch_merge(projected, change, refs, 1, mode)
    change[(refs[1:] == -1)] = float("nan")
    assert torch.equal(launch_merge(projected, change, refs, 1, mode), expected)
    assert torch.equal(expected[0], projected[0])


@pytest.mark.parametrize(("channels", "first_row"), [(64, 0), (33, 3), (320, 4)])
def test_channels_and_rows(channels: int, first_row: int) -> None:
    projected, change, refs = _tensors(torch.float32, channels, first_row, tokens=9)
    merged = launch_merge(projected, change, refs, first_row, "argmax")
    oracle = eager_ops.merge(projected, change, refs, first_row, "argmax")
    torch.testing.assert_close(merged, oracle)


def test_argmax_takes_the_lowest_slot_of_equal_norms() -> None:
    change = torch.tensor([[[[3.0, 4.0]], [[-3.0, 4.0]], [[0.0, 5.0]]]])
    refs = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    projected = torch.zeros(1, 1, 2)
    assert launch_merge(projected, change, refs, 0, "argmax").tolist() == [[[3.0, 4.0]]]
    flipped = launch_merge(projected, change.flip(1), refs, 0, "argmax")
    assert flipped.tolist() == [[[0.0, 5.0]]]


def test_norms_of_float16_do_not_overflow() -> None:
    change = torch.tensor([[[[200.0, 0.0]], [[300.0, 1.0]]]], dtype=torch.float16)
    refs = torch.tensor([[0, 1]], dtype=torch.int32)
    projected = torch.zeros(1, 1, 2, dtype=torch.float16)
    assert launch_merge(projected, change, refs, 0, "argmax").tolist() == [[[300.0, 1.0]]]


def test_nan_is_passed_on() -> None:
    change = torch.tensor([[[[float("nan"), 0.0]], [[3.0, 1.0]]]])
    refs = torch.tensor([[0, 1]], dtype=torch.int32)
    for order in (change, change.flip(1)):
        merged = launch_merge(torch.zeros(1, 1, 2), order, refs, 0, "argmax")
        assert merged.isnan().any()
