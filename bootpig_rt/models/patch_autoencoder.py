"""An autoencoder that begins as a linear one: patches projected to latents and back, plus networks.

Latents are a projection of square patches, the picture a projection of latents and their
neighbours; they begin as principal components of the data and as the least squares of what these
leave open. Beside each runs a small network whose last layer begins as zeros, so training starts
from what a linear autoencoder can do and not from noise. Nothing but the projections runs at the
picture's full size, and there are no norms: a part of a picture does not depend on what is far from
it, so crops train what pictures need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

CLASS_NAME = "PatchAutoencoder"
"""`_class_name` in the `config.json` of its folder."""


@dataclass(frozen=True)
class Encoded:
    """What `encode` returns, named as in diffusers. `latents` [N, C, h, w], not scaled."""

    latents: Tensor


@dataclass(frozen=True)
class Decoded:
    """What `decode` returns, named as in diffusers. `sample` [N, 3, H, W], about [-1, 1]."""

    sample: Tensor


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Pictures [N, 3, H, W] in [-1, 1] <-> latents [N, C, H / f, W / f], in diffusers' layout.

    Args:
        in_channels: Of pictures, 3.
        latent_channels: C.
        block_out_channels: Of the decoder at full size, at half of it, and so on to the latents;
            the first are the picture's own. f is 2 to the power of their number less one, as for
            diffusers' autoencoders; at least 2.
        layers_per_block: Residual blocks of the decoder at each size but the first.
        encoder_channels: Of the encoder's network at twice the latents' size, and at it.
        encoder_layers: Residual blocks there.
        sample_size: Side of the pictures that it was trained on, in pixels.
        scaling_factor: Latents are multiplied by it ahead of a U-Net.
        latents_mean: Of each channel, taken off ahead of that; None for zeros.
        latents_std: Of each channel, which they are divided by; None for ones.
        force_upcast: False: it runs in float16.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (3, 48, 96, 160),
        layers_per_block: tuple[int, ...] = (1, 2, 2),
        encoder_channels: tuple[int, int] = (64, 128),
        encoder_layers: tuple[int, int] = (2, 1),
        sample_size: int = 128,
        scaling_factor: float = 1.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        fits = len(layers_per_block) == levels - 1 and block_out_channels[0] == in_channels
        if levels < 2 or not fits:
            raise ValueError(
                f"block_out_channels is {list(block_out_channels)} with layers_per_block "
                f"{list(layers_per_block)}, expected {in_channels} and at least one more, and "
                "layers for each of those"
            )
        factor = 2 ** (levels - 1)
        self.encoder = PatchEncoder(
            in_channels, latent_channels, factor, encoder_channels, encoder_layers
        )
        self.decoder = PatchDecoder(latent_channels, factor, block_out_channels, layers_per_block)

    def encode(self, pixels: Tensor) -> Encoded:
        """Latents of pixels [N, 3, H, W]; there is no chance in them."""
        return Encoded(self.encoder(pixels))

    @overload
    def decode(
        self, latents: Tensor, return_dict: Literal[True] = ..., generator: object = ...
    ) -> Decoded: ...

    @overload
    def decode(
        self, latents: Tensor, return_dict: Literal[False], generator: object = ...
    ) -> tuple[Tensor]: ...

    def decode(
        self, latents: Tensor, return_dict: bool = True, generator: object = None
    ) -> Decoded | tuple[Tensor]:
        """Pixels of latents that are not scaled.

        `return_dict` and `generator` are what pipelines of diffusers say: False gives the pixels in
        a tuple, and there is no chance.
        """
        pixels: Tensor = self.decoder(latents)
        return Decoded(pixels) if return_dict else (pixels,)


class PatchEncoder(nn.Module):
    """The projection of patches f x f to latents, and a network beside it."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        factor: int,
        channels: tuple[int, int],
        layers: tuple[int, int],
    ) -> None:
        super().__init__()
        near, far = channels
        half = factor // 2
        self.project = nn.Conv2d(in_channels, latent_channels, factor, stride=factor)
        self.conv_in = nn.Conv2d(in_channels, near, half, stride=half)
        self.near_blocks = _blocks(near, layers[0])
        self.down = nn.Conv2d(near, far, 3, stride=2, padding=1)
        self.far_blocks = _blocks(far, layers[1])
        self.conv_out = _zero(nn.Conv2d(far, latent_channels, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> latents [N, C, h, w]."""
        x = self.far_blocks(self.down(self.near_blocks(self.conv_in(pixels))))
        latents: Tensor = self.project(pixels) + self.conv_out(F.silu(x))
        return latents


class PatchDecoder(nn.Module):
    """A projection of 3 x 3 latents to a patch f x f, and a network that doubles its way beside."""

    def __init__(
        self,
        latent_channels: int,
        factor: int,
        channels: tuple[int, ...],
        layers: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.factor = factor
        self.project = nn.Conv2d(latent_channels, channels[0] * factor**2, 3, padding=1)
        self.conv_in = nn.Conv2d(latent_channels, channels[-1], 3, padding=1)
        self.blocks, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(len(channels) - 1, 0, -1):
            self.blocks.append(_blocks(channels[level], layers[level - 1]))
            self.up.append(nn.Conv2d(channels[level], 4 * channels[level - 1], 3, padding=1))
        _zero(self.up[-1])

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] -> pixels [N, 3, H, W]."""
        x = self.conv_in(latents)
        for blocks, up in zip(self.blocks, self.up, strict=True):
            x = F.pixel_shuffle(up(F.silu(blocks(x))), 2)
        pixels: Tensor = F.pixel_shuffle(self.project(latents), self.factor) + x
        return pixels


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity, which it begins as."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same."""
        changed: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return changed


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
