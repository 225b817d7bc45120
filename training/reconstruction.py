"""How far reconstructed pictures are from the originals: losses of an autoencoder, and figures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SCALES = (2, 4)


def edge_difference(difference: Tensor) -> Tensor:
    """Mean change between neighbours, both ways, of a difference of pictures [N, 3, H, W]."""
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return across + down


def scale_difference(difference: Tensor) -> Tensor:
    """Mean difference of pictures of a half and a quarter of the size, summed."""
    parts = [F.avg_pool2d(difference, scale).abs().mean() for scale in _SCALES]
    return torch.stack(parts).sum()


class Fidelity:
    """PSNR of subjects and of what is around them, over all pixels of all pictures added."""

    def __init__(self) -> None:
        self._errors, self._counts = [0.0, 0.0], [0.0, 0.0]

    def add(self, pixels: Tensor, found: Tensor, masks: Tensor) -> None:
        """Take originals and reconstructions [N, 3, H, W] in [-1, 1].

        `masks` uint8 [N, H, W] are shares of the subject, 0..255.
        """
        squared = (found - pixels).pow(2).mean(dim=1).double()
        share = masks.double() / 255
        for part, weight in enumerate((share, 1 - share)):
            self._errors[part] += float((squared * weight).sum())
            self._counts[part] += float(weight.sum())

    @property
    def subject_db(self) -> float:
        """PSNR of subjects in dB; the range of pixels is 2."""
        return self._db(0)

    @property
    def background_db(self) -> float:
        """PSNR of the rest."""
        return self._db(1)

    def _db(self, part: int) -> float:
        error = self._errors[part] / max(self._counts[part], 1e-12)
        return -10 * math.log10(max(error, 1e-12) / 4)
