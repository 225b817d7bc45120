"""Modules rewritten for ONNX Runtime compute what they stand for, with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import nn

from bootpig_rt.export.cpu_modules import FlatLinear, PhaseUpsample, SplitGEGLU, for_cpu
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.unet import BaseUNet


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (1, 1, 6)])
def test_a_linear_layer_over_rows_of_tokens_is_one_over_tokens(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(6, 4)
    x = torch.randn(shape)
    torch.testing.assert_close(for_cpu(layer)(x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_geglu_in_two_products_is_geglu(bias: bool) -> None:
    layer = GEGLU(6, 8, bias=bias)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(for_cpu(layer)(x), layer(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (5, 5)])
def test_four_small_convolutions_are_doubling_and_one_large(size: tuple[int, int]) -> None:
    layer = Upsample2D(4, use_conv=True, out_channels=6)
    x = torch.randn(3, 4, *size)
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(for_cpu(layer)(x), expected)


@pytest.mark.parametrize(
    "layer",
    [
        Upsample2D(4, use_conv=True, kernel_size=5, padding=2),
        Upsample2D(4, use_conv=True, norm_type="ln_norm", elementwise_affine=True),
        Upsample2D(4, use_conv_transpose=True),
    ],
    ids=["another kernel", "a norm", "transposed"],
)
def test_upsampling_of_another_kind_stays(layer: nn.Module) -> None:
    assert type(for_cpu(layer)) is Upsample2D


def test_a_rewritten_unet_shares_its_weights_and_leaves_the_original_alone(
    tiny_pair_folder: Path,
) -> None:
    unet = load_pair(tiny_pair_folder).base.unet
    before = [type(module) for module in unet.modules()]
    rewritten = for_cpu(unet)
    assert [type(module) for module in unet.modules()] == before
    kinds = {type(module) for module in rewritten.modules()}
    assert {FlatLinear, SplitGEGLU, PhaseUpsample} <= kinds
    assert not {GEGLU, Upsample2D} & kinds
    own = {id(parameter) for parameter in unet.parameters()}
    assert {id(parameter) for parameter in rewritten.parameters()} == own


def test_a_rewritten_unet_draws_the_same(tiny_pair_folder: Path) -> None:
    unet = load_pair(tiny_pair_folder).base.unet
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, unet.config.in_channels, 8, 16, generator=generator)
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    t = torch.tensor([3, 700])
    with torch.inference_mode():
        expected = BaseUNet(unet)(latents, t, text)
        found = BaseUNet(for_cpu(unet))(latents, t, text)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
