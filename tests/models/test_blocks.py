"""Blocks through the fused operators, here their eager twins, and as the modules that they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from bootpig_rt.kernels import block_ops, choose
from bootpig_rt.models import blocks, vae
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

PICTURES = torch.tensor([0, 0, 0])
REFS = torch.tensor([[-1], [0], [0]])


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def fuse(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Fused blocks on a CPU: the operators' twins. Counts their calls."""
    calls: dict[str, int] = {}

    def counted(name: str) -> Any:
        operator = getattr(block_ops, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return operator(*arguments, **settings)

        return call

    for name in ("group_norm", "add_layer_norm", "geglu", "residual_add"):
        monkeypatch.setattr(block_ops, name, counted(name))
    monkeypatch.setattr(choose, "fuses_blocks", lambda x: True)
    monkeypatch.setattr(choose, "fuses_picture", is_channels_last)
    return calls


def count(module: nn.Module, kind: type) -> int:
    return sum(isinstance(each, kind) for each in module.modules())


@pytest.mark.parametrize("uses_linear", [True, False])
def test_a_u_net_with_fused_blocks_computes_the_same_and_stays_in_channels_last(
    make_unet: Any, monkeypatch: pytest.MonkeyPatch, uses_linear: bool
) -> None:
    base = BaseUNet(make_unet(use_linear_projection=uses_linear))
    nn.Module.to(base.unet, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(3, 5, 12)
    sizes = [(8 >> level) ** 2 for level in base.layer_levels()]
    table = tuple(
        (torch.randn(1, heads, size, width // heads), torch.randn(1, heads, size, width // heads))
        for (_, heads, width), size in zip(base.layer_shapes(), sizes, strict=True)
    )
    plan = plan_rows(REFS, 1, PICTURES)

    def draw() -> Tensor:
        with torch.inference_mode():
            found: Tensor = base(latents, torch.tensor([300]), text, table, plan)
        return found

    expected = draw()
    calls = fuse(monkeypatch)
    torch.testing.assert_close(draw(), expected, rtol=1e-4, atol=1e-4)
    assert calls == {  # none of them had to take the plain way
        "group_norm": count(base.unet, nn.GroupNorm),
        "add_layer_norm": count(base.unet, nn.LayerNorm),
        "geglu": count(base.unet, GEGLU),
        "residual_add": count(base.unet, ResnetBlock2D),
    }


def test_a_reference_u_net_with_fused_blocks_reads_the_same(
    make_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ReferenceUNet(make_unet())
    nn.Module.to(reference.unet, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([300, 20]), torch.randn(2, 5, 12)
    with torch.inference_mode():
        expected = reference(*inputs)
        calls = fuse(monkeypatch)
        found = reference(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert calls["add_layer_norm"] == count(reference.unet, nn.LayerNorm) - 2  # ends at a norm1


@pytest.mark.parametrize("has_middle_attention", [True, False])
def test_an_autoencoder_with_fused_blocks_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, has_middle_attention: bool
) -> None:
    torch.manual_seed(0)
    module = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        mid_block_add_attention=has_middle_attention,
    ).eval()
    nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels, latents = torch.randn(2, 3, 16, 24), torch.randn(2, 4, 8, 12)
    with torch.inference_mode():
        mean, drawn = module.encode(pixels).latent_dist.mean, module.decode(latents).sample
        assert torch.equal(vae.encode(module, pixels), mean)  # a CPU takes the module itself
        calls = fuse(monkeypatch)
        torch.testing.assert_close(vae.encode(module, pixels), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(vae.decode(module, latents), drawn, rtol=1e-4, atol=1e-4)
    in_attention = 2 * has_middle_attention  # norms that stay modules
    assert calls["group_norm"] == count(module, nn.GroupNorm) - in_attention
    assert calls["residual_add"] == count(module, ResnetBlock2D)


def test_blocks_whose_parts_were_replaced_run_as_they_are(
    make_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(nn.Conv2d):
        """As an adapter that wraps a convolution."""

    block = ResnetBlock2D(in_channels=8, temb_channels=None, groups=2).eval()
    block.conv1 = Other(8, 8, 3, padding=1)
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    calls = fuse(monkeypatch)
    with torch.inference_mode():
        assert torch.equal(blocks.residual_block(block, x, None), block(x, None))
    assert not calls


def test_rows_of_a_picture_in_channels_last_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    index = torch.tensor([1, 0, 1])
    plain = blocks.pick_rows(x, index)
    monkeypatch.setattr(choose, "fuses_picture", is_channels_last)
    found = blocks.pick_rows(x, index)
    assert torch.equal(found, plain)
    assert is_channels_last(found)
    assert torch.equal(blocks.pick_rows(x[:, 0, 0], index), x[index, 0, 0])


def test_a_cpu_takes_the_modules_themselves() -> None:
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert not choose.fuses_blocks(x)
        assert not choose.fuses_picture(x.half())
    norm = nn.GroupNorm(2, 8)
    assert torch.equal(blocks.group_norm(norm, x, silu=False), norm(x))
    torch.testing.assert_close(blocks.group_norm(norm, x, silu=True), nn.functional.silu(norm(x)))
