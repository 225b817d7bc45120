"""Depth maps of photos, by an estimator in the layout of transformers: DPT, Depth Anything, ...

Estimators give inverse depth of no unit, near large; a map is that between its least and largest
value, white where it is near, as controls of kind `depth` were trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import CheckpointError
from bootpig_rt.images.image_input import MAX_PIXELS, ImageSource, load_image

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_USUAL_SIDE, _USUAL_MULTIPLE = 384, 32


class DepthEstimator:
    """An estimator, loaded.

    Args:
        folder: Holds `config.json`, `model.safetensors` and `preprocessor_config.json`.
        device: Where it computes.

    Raises:
        CheckpointError: The folder is none of a depth estimator, or its weights are a pickle.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        """Load the weights; no code of the folder is run, and no pickle is opened."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"depth estimator {folder} has no config.json, expected the folder of a model that "
                "transformers loads for depth estimation, such as DPT or Depth Anything",
                folder,
            )
        from transformers import AutoModelForDepthEstimation

        try:
            model: Any = AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"depth estimator {folder} cannot be loaded: {reason}; take a model for depth "
                "estimation with its weights in safetensors",
                folder,
            ) from error
        self._model = model.eval().to(device)
        self._device = device
        path = folder / "preprocessor_config.json"
        config = read_json(path) if path.is_file() else {}
        self._mean = torch.tensor(config.get("image_mean") or _MEAN).view(1, 3, 1, 1)
        self._std = torch.tensor(config.get("image_std") or _STD).view(1, 3, 1, 1)
        size = config.get("size") or {}
        self._side = int(size.get("height") or size.get("shortest_edge") or _USUAL_SIDE)
        self._multiple = int(config.get("ensure_multiple_of") or _USUAL_MULTIPLE)

    @torch.inference_mode()
    def depth(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Inverse depth of a picture.

        Args:
            pixels: uint8 [H, W, 3].

        Returns:
            float32 [H, W], near large, of no unit.
        """
        height, width, _ = pixels.shape
        scale = self._side / min(height, width)
        inner = [
            max(self._multiple, round(side * scale / self._multiple) * self._multiple)
            for side in (height, width)
        ]
        values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255.0
        values = F.interpolate(values, inner, mode="bicubic", antialias=True, align_corners=False)
        values = ((values.clamp(0, 1) - self._mean) / self._std).to(self._device)
        found = self._model(pixel_values=values).predicted_depth
        found = F.interpolate(
            found[:, None].float(), (height, width), mode="bicubic", align_corners=False
        )
        depth: npt.NDArray[np.float32] = found[0, 0].cpu().numpy()
        return depth


def depth_map(
    image: ImageSource, estimator: DepthEstimator | str | Path, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The depth map of a photo: near is white.

    Args:
        image: Whatever `load_image` accepts.
        estimator: Loaded, or its folder.
        max_pixels: A larger picture is refused.

    Returns:
        RGB, of the picture's size.

    Raises:
        ImageError: The picture cannot be read.
        CheckpointError: The estimator cannot be loaded.
    """
    picture = load_image(image, what="the photo of a map", max_pixels=max_pixels)
    if not isinstance(estimator, DepthEstimator):
        estimator = DepthEstimator(estimator)
    depth = estimator.depth(np.asarray(picture.convert("RGB")))
    low, high = float(depth.min()), float(depth.max())
    share = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    return Image.fromarray(np.rint(255 * share).astype(np.uint8)).convert("RGB")
