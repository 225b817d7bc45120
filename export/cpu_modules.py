"""Modules of a U-Net as ONNX Runtime runs them quickest on a CPU: same weights, same results.

- A linear layer with a bias, over tokens: tokens of all rows in one matrix, for which the runtime
  has one operator. Over three axes it takes two, and a pass over memory for the bias.
- GEGLU: a product for the values and one for the gates; splitting what one product gave is a copy.
- Doubling a picture and convolving it with 3 x 3: four convolutions of the small picture with
  2 x 2, one for each place in a block of 2 x 2 pixels. That is 16/36 of the operations.

Sums and parts of weights are made when a runtime loads the graph; files hold the pair's weights.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from bootpig_rt.export.shared_copy import shared_copy

_Module = TypeVar("_Module", bound=nn.Module)


class FlatLinear(nn.Linear):
    """`Linear` that takes tokens [B, N, C] as one matrix [B * N, C]."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        if input.dim() != 3:
            return super().forward(input)
        output: Tensor = super().forward(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        return output


class SplitGEGLU(GEGLU):  # type: ignore[misc]  # diffusers has no types
    """`GEGLU` with its projection in two parts."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, D]."""
        weight, bias = self.proj.weight, self.proj.bias
        width = weight.shape[0] // 2
        flat = hidden_states.flatten(0, 1)
        values = F.linear(flat, weight[:width], None if bias is None else bias[:width])
        gates = F.linear(flat, weight[width:], None if bias is None else bias[width:])
        gated: Tensor = (values * F.gelu(gates)).unflatten(0, hidden_states.shape[:2])
        return gated


class PhaseUpsample(Upsample2D):  # type: ignore[misc]
    """`Upsample2D` by nearest neighbours, as convolutions of the small picture.

    A doubled row 2i reads the rows i - 1 (first tap) and i (the two others), a row 2i + 1 reads i
    (the first two taps) and i + 1; so do columns.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, 2 h, 2 w]."""
        weight, bias = self.conv.weight, self.conv.bias
        rows = []
        for y, of_row in enumerate(_pairs(weight, 2)):
            columns = [
                F.conv2d(F.pad(hidden_states, (1 - x, x, 1 - y, y)), taps, bias)
                for x, taps in enumerate(_pairs(of_row, 3))
            ]
            rows.append(torch.stack(columns, dim=4).flatten(3))
        # The same as `pixel_shuffle`, which is slower in the runtime.
        return torch.stack(rows, dim=3).flatten(2, 3)


def _pairs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Three taps along an axis as two, for even and for odd places of a doubled picture."""
    first, middle, last = weight.split(1, dim=axis)
    even = torch.cat([first, middle + last], dim=axis)
    odd = torch.cat([first + middle, last], dim=axis)
    return even, odd


def for_cpu(module: _Module) -> _Module:
    """A copy that shares all parameters, with the modules above in place of what they stand for.

    Args:
        module: Stays as it is.
    """
    clone = shared_copy(module)
    for child in clone.modules():
        if type(child) is GEGLU:
            child.__class__ = SplitGEGLU
        elif type(child) is nn.Linear and child.bias is not None:
            child.__class__ = FlatLinear
        elif type(child) is Upsample2D and _is_plain(child):
            child.__class__ = PhaseUpsample
    return clone


def _is_plain(upsample: Upsample2D) -> bool:
    """Whether it doubles and convolves with 3 x 3, and does no more."""
    conv = upsample.conv
    return (
        upsample.norm is None
        and type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.groups)
        == ((3, 3), (1, 1), (1, 1), 1)
    )
