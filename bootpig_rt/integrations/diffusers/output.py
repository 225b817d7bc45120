"""What a call of the pipeline returns, in the kinds of pictures that diffusers knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.picture import to_pil
from bootpig_rt.request import PictureParameters

OutputType: TypeAlias = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class BootPIGPipelineOutput(BaseOutput):  # type: ignore[misc]  # diffusers has no types
    """Pictures of one call.

    Attributes:
        images: A list of PIL pictures, float32 [B, H, W, 3] of numpy or [B, 3, H, W] of torch in
            [0, 1], or latents [B, C, h, w].
        parameters: All that each picture was made from, where an engine drew it; None from the
            eager way, whose parts and latents a caller may have changed.
    """

    images: Any
    parameters: list[PictureParameters] | None = None


def from_pixels(pixels: FloatArray, output_type: OutputType) -> Any:
    """Decoded pixels float32 [B, 3, H, W] in [-1, 1] as `pil`, `np` or `pt`.

    Raises:
        NumericalError: NaN or infinity.
    """
    if output_type == "pil":
        return to_pil(pixels)
    unit = np.clip(pixels / 2 + 0.5, 0, 1)
    return torch.from_numpy(unit) if output_type == "pt" else unit.transpose(0, 2, 3, 1)


def from_pictures(images: Sequence[Image.Image], output_type: OutputType) -> Any:
    """RGB pictures as `pil`, `np` or `pt`."""
    if output_type == "pil":
        return list(images)
    unit = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    return unit if output_type == "np" else torch.from_numpy(unit.transpose(0, 3, 1, 2).copy())


def canvas_of(image: Any, mask: Any) -> Canvas | None:
    """What is drawn into, of any kind that diffusers takes.

    Raises:
        ParameterError: A mask alone.
        ImageError: One cannot be used.
    """
    if image is None and mask is not None:
        raise ParameterError("mask_image is given without image; give both, or neither")
    if image is None:
        return None
    given, where = as_sources([image]), as_sources([mask])
    if len(given) != 1 or len(where) != 1:
        raise ParameterError("image and mask_image are several pictures, expected one of each")
    return Canvas.load(given[0], where[0])


def as_sources(images: Any) -> Any:
    """Reference images of any kind that diffusers takes, as those that this package takes.

    Args:
        images: One or a list of: PIL, path, bytes, numpy [H, W, 3] or [R, H, W, 3], torch
            [3, H, W] or [R, 3, H, W]; floats in [0, 1].
    """
    if isinstance(images, list | tuple):
        found = [as_sources(image) for image in images]
        return [one for each in found for one in (each if isinstance(each, list) else [each])]
    if isinstance(images, torch.Tensor):
        array = images.detach().float().cpu().numpy()
        images = np.moveaxis(array, -3, -1) if array.ndim in (3, 4) else array
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    return images
