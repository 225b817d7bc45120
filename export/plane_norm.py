"""Group normalisation that stays accurate over large planes in ONNX Runtime.

ONNX Runtime on a CPU sums all values of a group in one float32 accumulator for each vector lane.
Over the 4 x 256 x 256 values of an autoencoder's first layers that costs two to three digits: an
encoder of Stable Diffusion's size with random weights was off by 1.4e-4, torch's float32 by 1e-6.
Means of rows, then the mean of those, keep the digits: 4e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bootpig_rt.export.shared_copy import shared_copy


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


def with_plane_norms(module: nn.Module) -> nn.Module:
    """A copy that shares all parameters, its group norms replaced by `PlaneNorm`.

    Args:
        module: Stays as it is.
    """
    clone = shared_copy(module)
    for child in clone.modules():
        if type(child) is nn.GroupNorm:
            child.__class__ = PlaneNorm
    return clone


def _mean(grouped: Tensor) -> Tensor:
    """[N, G, rows, W] -> [N, G, 1, 1]."""
    return grouped.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
