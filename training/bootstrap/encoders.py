"""Pictures as vectors of length 1, for likeness: a perceptual hash, or a network's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import CheckpointError
from bootpig_rt.training.bootstrap.folders import (
    check_folder,
    choose_device,
    choose_dtype,
    load_model,
    load_processor,
)
from bootpig_rt.training.bootstrap.masks import import_cv2
from bootpig_rt.training.evaluation.efficientnet import embed, load_efficientnet

Encoder = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
"""Pictures, uint8 [S, S, 3] each -> float32 [N, D], rows of length 1."""

_HASH_SIDE, _HASH_PX = 8, 32
_EFFICIENTNET_PX = 224


def make_encoder(name: str, device: str, dtype: str) -> Encoder:
    """The encoder of a setting: `phash`, `efficientnet`, or a CLIP or DINO folder.

    Raises:
        CheckpointError: The folder is none of these, or not whole.
        BackendUnavailable: A package is missing.
    """
    if name == "phash":
        return perceptual_hash
    if name == "efficientnet":
        return _efficientnet()
    return FolderEncoder(name, device, dtype)


def perceptual_hash(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The signs of the lowest frequencies, as a vector: one bit of 64 costs a cosine of 1 / 32.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), 3.2.
    """
    cv2 = import_cv2()
    rows = []
    for picture in pictures:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (_HASH_PX, _HASH_PX), interpolation=cv2.INTER_AREA)
        low = cv2.dct(small.astype(np.float32))[1 : _HASH_SIDE + 1, 1 : _HASH_SIDE + 1].ravel()
        rows.append(np.where(low > np.median(low), 1.0, -1.0))
    return np.asarray(rows, np.float32).reshape(-1, _HASH_SIDE**2) / np.float32(_HASH_SIDE)


def _efficientnet() -> Encoder:
    net = load_efficientnet()

    def encode(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return _unit(embed(net, np.stack(pictures), side_px=_EFFICIENTNET_PX))

    return encode


class FolderEncoder:
    """The image features of CLIP, or the class token of a DINO or other vision transformer.

    Raises:
        CheckpointError: The folder is none of these, or not whole.
    """

    def __init__(self, path: str, device: str, dtype: str) -> None:
        from transformers import AutoImageProcessor, AutoModel, CLIPModel, ViTModel

        what = "encoder"
        kind = check_folder(path, what).get("model_type", "")
        self._is_clip = kind == "clip"
        if not self._is_clip and kind not in ("vit", "dinov2", "dinov2_with_registers"):
            raise CheckpointError(
                f"{what} {path} is of type {kind!r}, expected clip, vit or dinov2; take such a "
                'folder, or "efficientnet"',
                path,
            )
        self._device = choose_device(device)
        self._dtype = choose_dtype(dtype, self._device)
        self._processor = load_processor(AutoImageProcessor, path, what)
        model, options = (CLIPModel if self._is_clip else AutoModel), {}
        if kind == "vit":  # DINO's folders have no pooler
            model, options = ViTModel, {"add_pooling_layer": False}
        self._model = load_model(model, path, what, self._device, self._dtype, **options)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See `Encoder`."""
        images = [Image.fromarray(picture) for picture in pictures]
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self._device, self._dtype)
        if self._is_clip:
            features = clip_features(self._model.get_image_features(pixel_values=pixels))
        else:
            features = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        return _unit(features.float().cpu().numpy())


class Agreement:
    """How well pictures show what captions say: CLIP's cosine.

    Raises:
        CheckpointError: The folder is not CLIP's, or not whole.
    """

    def __init__(self, path: str, device: str, dtype: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        what = "CLIP model"
        kind = check_folder(path, what).get("model_type")
        if kind != "clip":
            raise CheckpointError(
                f"{what} {path} is of type {kind!r}, expected clip; take such a folder", path
            )
        self._device = choose_device(device)
        self._dtype = choose_dtype(dtype, self._device)
        self._processor = load_processor(CLIPProcessor, path, what)
        self._model = load_model(CLIPModel, path, what, self._device, self._dtype)

    @torch.inference_mode()
    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]
    ) -> NDArray[np.float32]:
        """The cosine of each picture, uint8 [S, S, 3], and its caption: float32 [N]."""
        inputs = self._processor(
            images=[Image.fromarray(picture) for picture in pictures],
            text=list(captions),
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        pixels = inputs["pixel_values"].to(self._dtype)
        seen = clip_features(self._model.get_image_features(pixel_values=pixels))
        said = clip_features(
            self._model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
        )
        cosine: NDArray[np.float32] = (
            torch.nn.functional.cosine_similarity(seen.float(), said.float()).cpu().numpy()
        )
        return cosine


def clip_features(output: Any) -> torch.Tensor:
    """CLIP's projected features, which newer versions of transformers wrap: [N, D]."""
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    rows: NDArray[np.float32] = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return rows
