"""Group norms in channels-last through one operator, here its eager twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bootpig_rt.kernels import choose, ops
from bootpig_rt.models import norms
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet

PICTURES = torch.tensor([0, 0, 0])
REFS = torch.tensor([[-1], [0], [0]])


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("uses_linear", [True, False])
def test_a_u_net_with_fused_norms_computes_the_same_and_stays_in_channels_last(
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
    seen: list[Tensor] = []
    group_norm = ops.group_norm

    def watched(x: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        seen.append(x)
        return group_norm(x, *arguments, **settings)

    monkeypatch.setattr(ops, "group_norm", watched)
    monkeypatch.setattr(choose, "fuses_norm", is_channels_last)
    found = draw()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    modules = [each for each in base.unet.modules() if isinstance(each, nn.GroupNorm)]
    assert len(seen) == len(modules)  # none of them had to take the plain way


def test_rows_of_a_picture_in_channels_last_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    index = torch.tensor([1, 0, 1])
    plain = norms.pick_rows(x, index)
    monkeypatch.setattr(choose, "fuses_norm", is_channels_last)
    found = norms.pick_rows(x, index)
    assert torch.equal(found, plain)
    assert is_channels_last(found)
    assert torch.equal(norms.pick_rows(x[:, 0, 0], index), x[index, 0, 0])


def test_a_cpu_takes_the_modules_themselves() -> None:
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert not choose.fuses_norm(x.half())
    norm = nn.GroupNorm(2, 8)
    assert torch.equal(norms.group_norm(norm, x, silu=False), norm(x))
    torch.testing.assert_close(norms.group_norm(norm, x, silu=True), nn.functional.silu(norm(x)))
