"""Principal components of square patches: where an autoencoder starts, and the floor it is held to.

Nothing linear that sees each patch alone is closer to its pictures with as many numbers. A decoder
that also sees the neighbours of a latent is: by 1 dB for 8 x 8 patches and 16 numbers. How far a
trained one is above the floor is what that and its training were worth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bootpig_rt.models.patch_autoencoder import PatchAutoencoder

_RIDGE = 1e-5
"""Of latents with unit variance: keeps what the data leave open small."""


@dataclass(frozen=True)
class PatchBasis:
    """Patches of f x f pixels in their principal components, the largest first; float32.

    Attributes:
        mean: [D], D = 3 f^2, the mean patch.
        components: [D, D], a component in each row, of length 1.
        spread: [D], standard deviation along each.
    """

    mean: Tensor
    components: Tensor
    spread: Tensor

    def floor(self, pixels: Tensor, channels: int) -> Tensor:
        """Pictures [N, 3, H, W] by way of `channels` numbers a patch, and back."""
        factor = round((len(self.mean) / 3) ** 0.5)
        kept = self.components[:channels].to(pixels.device)
        mean = self.mean.to(pixels.device)
        height, width = pixels.shape[2] // factor, pixels.shape[3] // factor
        patches = _patches(pixels, factor) - mean
        back = (patches @ kept.T) @ kept + mean
        tiles = back.view(len(pixels), height, width, 3, factor, factor)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(pixels.shape)


def fit_basis(batches: Iterable[Tensor], factor: int) -> PatchBasis:
    """Fit to pictures, batches of [N, 3, H, W]; sides are multiples of `factor`."""
    size = 3 * factor**2
    total, products = torch.zeros(size).double(), torch.zeros(size, size).double()
    count = 0
    for pixels in batches:
        patches = _patches(pixels.cpu().float(), factor)
        total += patches.sum(0).double()
        products += (patches.T @ patches).double()
        count += len(patches)
    mean = total / count
    variances, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    spread = variances.flip(0).clamp(min=1e-8).sqrt()
    return PatchBasis(mean.float(), vectors.flip(1).T.contiguous().float(), spread.float())


@torch.no_grad()
def start_from_basis(vae: PatchAutoencoder, basis: PatchBasis) -> None:
    """Make both projections the principal components; latents then have unit variance.

    The decoder reads no neighbours yet; see `fit_neighbours`.
    """
    encoder: Any = vae.encoder.project
    decoder: Any = vae.decoder.project
    channels = len(encoder.bias)
    kept, spread = basis.components[:channels], basis.spread[:channels, None]
    rows = kept / spread
    encoder.weight.copy_(rows.view_as(encoder.weight))
    encoder.bias.copy_(-(rows @ basis.mean))
    decoder.weight.zero_()
    decoder.weight[:, :, 1, 1] = (kept * spread).T
    decoder.bias.copy_(basis.mean)


@torch.no_grad()
def fit_neighbours(vae: PatchAutoencoder, batches: Iterable[Tensor]) -> None:
    """Let the decoder's projection read neighbours too, by least squares on pictures [N, 3, H, W].

    The networks beside the projections must not have been trained.
    """
    project: Any = vae.decoder.project
    factor = vae.decoder.factor
    size = project.weight[0].numel() + 1
    products, wanted = (
        torch.zeros(size, size).double(),
        torch.zeros(size, len(project.bias)).double(),
    )
    count = 0
    for pixels in batches:
        latents = vae.encode(pixels.to(project.weight.device)).latents.cpu().float()
        seen = F.unfold(latents, 3, padding=1).transpose(1, 2).flatten(0, 1)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
        products += (seen.T @ seen).double()
        wanted += (seen.T @ _patches(pixels.cpu().float(), factor)).double()
        count += len(seen)
    ridge = _RIDGE * count * torch.eye(size).double()
    found = torch.linalg.solve(products + ridge, wanted).T.float()
    project.weight.copy_(found[:, :-1].reshape(project.weight.shape))
    project.bias.copy_(found[:, -1])


def _patches(pixels: Tensor, factor: int) -> Tensor:
    """[N, 3, H, W] -> [N * h * w, 3 f^2], a patch in each row, as a convolution reads it."""
    count, colours, height, width = pixels.shape
    tiles = pixels.reshape(count, colours, height // factor, factor, width // factor, factor)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, colours * factor**2)
