"""Modules as ONNX Runtime runs them best on a CPU: same weights, same results.

In U-Nets, for speed:

- A linear layer with a bias, over tokens: tokens of all rows in one matrix, for which the runtime
  has one operator. Over three axes it takes two, and a pass over memory for the bias.
- GEGLU: a product for the values and one for the gates; splitting what one product gave is a copy.
- Doubling a picture and convolving it with 3 x 3: four convolutions of the small picture with
  2 x 2, one for each place in a block of 2 x 2 pixels. That is 16/36 of the operations.

In the autoencoder's encoder, for its digits: group norms whose means are taken in two stages. ONNX
Runtime sums all values of a group in one float32 accumulator for each vector lane. Over the
4 x 256 x 256 values of the first layers that costs two to three digits: an encoder of Stable
Diffusion's size with random weights was off by 1.4e-4, torch's float32 by 1e-6. Means of rows, then
the mean of those, keep the digits: 4e-6.

Sums and parts of weights are made when a runtime loads the graph; files hold the pair's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

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


class PlaneNorm(nn.GroupNorm):
    """`GroupNorm` with means taken in two stages, in float32.

    Only planes, [N, C, H, W], are large; other shapes are normalised as ever.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> the same, normalised over each group of channels."""
        if input.dim() != 4:
            return super().forward(input)
        rows, _, _, width = input.shape
        grouped = input.float().reshape(rows, self.num_groups, -1, width)
        centred = grouped - _mean(grouped)
        scaled = centred * torch.rsqrt(_mean(centred * centred) + self.eps)
        weight, bias = self.weight.float()[:, None, None], self.bias.float()[:, None, None]
        return (scaled.reshape(input.shape) * weight + bias).to(input.dtype)


def _mean(grouped: Tensor) -> Tensor:
    """[N, G, rows, W] -> [N, G, 1, 1]."""
    return grouped.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def with_plane_norms(module: _Module) -> _Module:
    """A copy that shares all parameters, its group norms replaced by `PlaneNorm`."""
    return _rewritten(module, lambda child: PlaneNorm if type(child) is nn.GroupNorm else None)


def for_cpu(module: _Module) -> _Module:
    """A copy of a U-Net that shares all parameters, its modules replaced as above."""
    return _rewritten(module, _quicker)


def _rewritten(module: _Module, kind_of: Callable[[nn.Module], type | None]) -> _Module:
    """A copy that shares all parameters and buffers; modules become what `kind_of` says."""
    kept: dict[int, Any] = {
        id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())
    }
    clone = copy.deepcopy(module, kept)  # a memo of what is not copied
    for child in clone.modules():
        child.__class__ = kind_of(child) or type(child)
    return clone


def _quicker(child: nn.Module) -> type | None:
    if type(child) is GEGLU:
        return SplitGEGLU
    if type(child) is nn.Linear and child.bias is not None:
        return FlatLinear
    if type(child) is Upsample2D and _is_plain(child):
        return PhaseUpsample
    return None


def _is_plain(upsample: Upsample2D) -> bool:
    """Whether it doubles and convolves with 3 x 3, and does no more."""
    conv = upsample.conv
    return (
        upsample.norm is None
        and type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.groups)
        == ((3, 3), (1, 1), (1, 1), 1)
    )
