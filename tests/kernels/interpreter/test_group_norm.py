"""The group norm in Triton's interpreter, against its eager twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bootpig_rt.kernels import eager_ops
from bootpig_rt.kernels.launch import launch_group_norm


def _tensors(
    dtype: torch.dtype, channels: int, side: int, *, mean: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(2, channels, side, side + 1, generator=generator)
    weight, bias = (torch.randn(channels, generator=generator).to(dtype) for _ in range(2))
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight, bias


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("channels", "groups", "side"), [(40, 4, 5), (32, 32, 3), (96, 2, 16)])
def test_it_equals_the_oracle(
    dtype: torch.dtype, channels: int, groups: int, side: int, silu: bool
) -> None:
    x, weight, bias = _tensors(dtype, channels, side)
    found = launch_group_norm(x, weight, bias, groups, 1e-5, silu)
    wide = (x.double(), weight.double(), bias.double())
    expected = eager_ops.group_norm(*wide, groups, 1e-5, silu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * unit, atol=8 * unit + 1e-5)


def test_several_tiles_of_pixels_are_one_norm() -> None:
    x, weight, bias = _tensors(torch.float32, 128, 20)  # 420 pixels, tiles of 128
    found = launch_group_norm(x, weight, bias, 2, 1e-5, False)
    torch.testing.assert_close(found, eager_ops.group_norm(x, weight, bias, 2, 1e-5, False))


def test_a_mean_that_is_large_beside_the_spread_costs_no_digits() -> None:
    x, weight, bias = _tensors(torch.float32, 16, 8, mean=1000.0)
    found = launch_group_norm(x, weight, bias, 4, 1e-5, False)
    expected = eager_ops.group_norm(x.double(), weight.double(), bias.double(), 4, 1e-5, False)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
