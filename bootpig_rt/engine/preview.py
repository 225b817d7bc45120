"""Previews: by the pair's tiny decoder, else a linear map from latents to small RGB pictures.

The map is fitted once for a pair, by least squares, on what its own image encoder makes of smooth
colour pictures. It is wrong about details and right about colours and places, at no cost. Channels
that smooth pictures leave as they are, which autoencoders with many have, get no weight.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from bootpig_rt.backends.base import Backend, FloatArray
from bootpig_rt.images.picture import to_pil
from bootpig_rt.request import PictureParameters

_NUM_PICTURES = 12
_PATCHES = 4
_RIDGE = 1e-3
"""Of latents with unit variance: what the pictures tell nothing about stays near zero."""


def fit_preview(backend: Backend) -> FloatArray:
    """The map of a backend's pair, float32 [C + 1, 3]: latents and 1 to RGB in [-1, 1]."""
    spec = backend.spec
    side, factor = spec.config.sample_size_px, spec.vae_scale_factor
    pixels = np.stack([_colours(seed, side) for seed in range(_NUM_PICTURES)])
    latents = np.concatenate([backend.encode_image(one[np.newaxis]) for one in pixels])
    n, _, height, width = latents.shape
    rgb = pixels[:, :, : height * factor, : width * factor]
    rgb = rgb.reshape(n, 3, height, factor, width, factor).mean(axis=(3, 5))
    known = _with_one(latents).astype(np.float64)
    wanted = np.moveaxis(rgb, 1, -1).reshape(-1, 3).astype(np.float64)
    ridge = _RIDGE * len(known) * np.eye(known.shape[1])
    ridge[-1, -1] = 0  # the constant is free
    fitted = np.linalg.solve(known.T @ known + ridge, known.T @ wanted)
    return np.asarray(fitted, np.float32)


class Previews:
    """Small pictures of latents; a map for them is fitted when the first one is asked for.

    Args:
        backend: Whose latents.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._map: FloatArray | None = None

    def of(self, latents: FloatArray, wanted: PictureParameters) -> tuple[Image.Image, ...]:
        """Pictures of latents [B, C, h, w], of the size that is wanted."""
        if "tiny" in self._backend.spec.decoders:
            return tuple(to_pil(np.nan_to_num(self._backend.decode(latents, decoder="tiny"))))
        if self._map is None:
            self._map = fit_preview(self._backend)
        rgb = _with_one(latents) @ self._map
        levels = np.clip(np.nan_to_num(rgb) * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
        size = wanted.width, wanted.height
        return tuple(
            Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)
            for one in levels.reshape(len(latents), *latents.shape[2:], 3)
        )


def _with_one(latents: FloatArray) -> FloatArray:
    """[N, C, h, w] to rows [N h w, C + 1]."""
    rows = np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1])
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)


def _colours(seed: int, side: int) -> FloatArray:
    """A smooth picture of random colours, float32 [3, side, side] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
    return np.moveaxis(np.asarray(image, np.float32) / 127.5 - 1.0, -1, 0)
