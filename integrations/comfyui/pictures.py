"""Between ComfyUI's IMAGE, float32 [B, H, W, 3] in [0, 1], and pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from bootpig_rt import ParameterError


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as IMAGE."""
    arrays = [np.asarray(picture, np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def as_pictures(images: torch.Tensor) -> list[Image.Image]:
    """IMAGE as RGB pictures."""
    levels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(one[..., :3]) for one in levels]


def cut_out(images: torch.Tensor, mask: torch.Tensor | None) -> list[Image.Image]:
    """Pictures, transparent where the mask is 1.

    Raises:
        ParameterError: The mask is of another size.
    """
    pictures = as_pictures(images)
    if mask is None or not bool(mask.any()):  # Load Image gives zeros for a picture without one
        return pictures
    mask = mask.detach().cpu().reshape(-1, *mask.shape[-2:])
    height, width = images.shape[1:3]
    if mask.shape[0] not in (1, len(pictures)) or tuple(mask.shape[1:]) != (height, width):
        raise ParameterError(
            f"the mask is {list(mask.shape)}, expected [1 or {len(pictures)}, {height}, {width}] "
            "as its images; connect the mask of the same Load Image"
        )
    alphas = ((1 - mask.clamp(0, 1)) * 255).round().to(torch.uint8).numpy()
    for number, picture in enumerate(pictures):
        picture.putalpha(Image.fromarray(alphas[number if len(alphas) > 1 else 0]))
    return pictures
