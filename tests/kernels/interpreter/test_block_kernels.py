"""The kernels around attention in Triton's interpreter, each against its eager twin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bootpig_rt.kernels import eager_ops, tiles
from bootpig_rt.kernels.launch_blocks import (
    launch_geglu,
    launch_group_norm,
    launch_layer_norm,
    launch_residual_add,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
ONE_LAUNCH, THREE_LAUNCHES = 1 << 30, 0
"""The largest picture that takes one launch: any, or none."""


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _picture(dtype: torch.dtype, channels: int, side: int, *, mean: float = 0.0) -> Tensor:
    x = mean + _random(2, channels, side, side + 1, dtype=torch.float32)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _weights(dtype: torch.dtype, channels: int) -> tuple[Tensor, Tensor]:
    return _random(channels, dtype=dtype, seed=1), _random(channels, dtype=dtype, seed=2)


def _assert_as_exact_as_the_type(
    found: Tensor, oracle: Callable[..., Tensor], *inputs: Tensor | None
) -> None:
    """The twin in float64, rounded: within two units in the last place."""
    expected = oracle(*(None if each is None else each.double() for each in inputs))
    unit = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * unit, atol=8 * unit + 1e-5)


@pytest.mark.parametrize("most_pixels", [ONE_LAUNCH, THREE_LAUNCHES])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups", "side"), [(40, 4, 5), (32, 32, 3), (96, 2, 16), (960, 32, 3)]
)
def test_the_group_norm_equals_the_oracle(
    dtype: torch.dtype, channels: int, groups: int, side: int, silu: bool, most_pixels: int
) -> None:
    x = _picture(dtype, channels, side)
    weight, bias = _weights(dtype, channels)
    found = launch_group_norm(x, weight, bias, groups, 1e-5, silu, most_pixels=most_pixels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype

    def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return eager_ops.group_norm(x, weight, bias, groups, 1e-5, silu)

    _assert_as_exact_as_the_type(found, oracle, x, weight, bias)


@pytest.mark.parametrize("most_pixels", [ONE_LAUNCH, THREE_LAUNCHES])
@pytest.mark.parametrize("rows_of_offset", [1, 2])
def test_an_offset_is_added_ahead_of_the_group_norm(rows_of_offset: int, most_pixels: int) -> None:
    x = _picture(torch.float32, 24, 6)
    weight, bias = _weights(torch.float32, 24)
    wide = _random(rows_of_offset, 30, dtype=torch.float32, seed=3) * 5
    offset = wide[:, :24]  # rows need not lie behind each other
    found = launch_group_norm(x, weight, bias, 3, 1e-5, True, offset, most_pixels=most_pixels)
    expected = eager_ops.group_norm(x, weight, bias, 3, 1e-5, True, offset)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, eager_ops.group_norm(x, weight, bias, 3, 1e-5, True))


@pytest.mark.parametrize("most_pixels", [ONE_LAUNCH, THREE_LAUNCHES])
def test_several_tiles_and_chunks_are_one_norm(
    monkeypatch: pytest.MonkeyPatch, most_pixels: int
) -> None:
    monkeypatch.setattr(tiles, "pixels_of_chunk", lambda pixels: 24)  # 18 chunks, of a tile or less
    monkeypatch.setattr(tiles, "group_norm_pixels", lambda channels: 128)
    x = _picture(torch.float32, 128, 20)  # 420 pixels
    weight, bias = _weights(torch.float32, 128)
    found = launch_group_norm(x, weight, bias, 2, 1e-5, False, most_pixels=most_pixels)
    torch.testing.assert_close(found, eager_ops.group_norm(x, weight, bias, 2, 1e-5, False))


@pytest.mark.parametrize("most_pixels", [ONE_LAUNCH, THREE_LAUNCHES])
def test_a_mean_that_is_large_beside_the_spread_costs_no_digits(most_pixels: int) -> None:
    x = _picture(torch.float32, 16, 8, mean=1000.0)
    weight, bias = _weights(torch.float32, 16)
    found = launch_group_norm(x, weight, bias, 4, 1e-5, False, most_pixels=most_pixels)
    expected = eager_ops.group_norm(x.double(), weight.double(), bias.double(), 4, 1e-5, False)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 40, 640])
def test_the_sum_and_its_layer_norm_equal_the_oracle(dtype: torch.dtype, channels: int) -> None:
    x, change = (_random(2, 67, channels, dtype=dtype, seed=seed) for seed in (3, 4))
    weight, bias = _weights(dtype, channels)
    total, found = launch_layer_norm(x, change, weight, bias, 1e-5)
    unit = torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off, where a GPU rounds
    torch.testing.assert_close(total, x + change, rtol=unit, atol=0)

    def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return eager_ops.add_layer_norm(x, None, weight, bias, 1e-5)[1]

    _assert_as_exact_as_the_type(found, oracle, total, weight, bias)
    same, alone = launch_layer_norm(x, None, weight, bias, 1e-5)
    assert same is x
    _assert_as_exact_as_the_type(alone, oracle, x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 40, 1280])
def test_geglu_equals_the_oracle(dtype: torch.dtype, channels: int) -> None:
    x = 2 * _random(3, 5, 2 * channels, dtype=dtype)
    _assert_as_exact_as_the_type(launch_geglu(x), eager_ops.geglu, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 40, 320])
def test_the_end_of_a_residual_block_equals_the_oracle(dtype: torch.dtype, channels: int) -> None:
    x, change = _picture(dtype, channels, 5), _picture(dtype, channels, 5, mean=1.0)
    bias = _random(channels, dtype=dtype, seed=3)
    found = launch_residual_add(x, change, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    _assert_as_exact_as_the_type(found, eager_ops.residual_add, x, change, bias)
