"""Group normalisation over large planes keeps its digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bootpig_rt.export.cpu_modules import PlaneNorm, with_plane_norms

SHAPES = ((2, 8, 6, 4), (1, 4, 256, 256))


def random_norm(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(2, channels, eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.normal_(generator=generator)
    return norm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_it_is_group_normalisation(shape: tuple[int, ...], mean: float) -> None:
    plain = random_norm(shape[1])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + mean
    with torch.no_grad():
        ours = with_plane_norms(nn.Sequential(plain))(values)
        exact = plain.double()(values.double())
    assert torch.linalg.norm(ours - exact) <= 2e-6 * torch.linalg.norm(exact)


def test_half_precision_is_summed_in_float32() -> None:
    plain = random_norm(4)
    values = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(1)) * 300 + 1000
    with torch.no_grad():
        exact = plain.double()(values.half().double())
        ours = with_plane_norms(nn.Sequential(plain.half()))(values.half())
    assert ours.dtype == torch.float16
    assert torch.linalg.norm(ours - exact) <= 1e-3 * torch.linalg.norm(exact)


def test_the_copy_shares_its_parameters_and_the_module_stays_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    copied = with_plane_norms(module)
    assert type(module[1]) is nn.GroupNorm
    assert isinstance(copied, nn.Sequential)
    assert type(copied[1]) is PlaneNorm
    for (name, left), (other, right) in zip(
        module.named_parameters(), copied.named_parameters(), strict=True
    ):
        assert name == other
        assert left is right


class Both(nn.Module):
    """Torch's own normalisation and ours, of one input."""

    def __init__(self, plain: nn.GroupNorm) -> None:
        super().__init__()
        self.own = nn.Sequential(plain)
        self.ours = with_plane_norms(self.own)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.own(values), self.ours(values)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_runtime_keeps_the_digits_that_it_loses_with_its_own(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ort: Any = pytest.importorskip("onnxruntime")
    plain = nn.GroupNorm(1, 16, eps=1e-6)
    values = torch.randn((1, 16, 256, 256), generator=torch.Generator().manual_seed(1)) + 10
    with torch.no_grad():
        exact = plain.double()(values.double()).numpy()
    plain.float()
    program = torch.onnx.export(Both(plain).eval(), (values,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "both.onnx"))
    session = ort.InferenceSession(str(tmp_path / "both.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: values.numpy()})
    own, ours = (float(np.linalg.norm(one - exact) / np.linalg.norm(exact)) for one in got)
    assert ours < 1e-5
    assert own > 3 * ours
