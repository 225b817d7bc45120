"""The encoders that score: CLIP, DINO, and EfficientNet where neither is at hand.

CLIP and DINO come from folders as a hub has them; nothing is fetched and no pickle is opened. The
protocol fixes their architectures (CLIP ViT-B/32, DINO ViT-S/16) and what they are shown: the
shorter side resized bicubically by Pillow, the middle cut out, CLIP's or ImageNet's mean and
deviation. Other architectures run, and are said to be on another scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, ViTModel
from transformers.utils import logging as transformers_logging

from bootpig_rt.bundle.files import measure
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.module_folder import TEXT_STEM
from bootpig_rt.models.weights import read_weights
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.evaluation.efficientnet import embed, load_efficientnet, weights_file

Floats: TypeAlias = NDArray[np.float32]

DinoView = Literal["crop", "whole"]
"""`crop`: to 256 px, of which the middle 224 are seen, as DINO's authors evaluate. `whole`: to 224
px, as the preprocessor in the hub's folder says."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BATCH = 32
_CLIP_B32 = {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32, "image_size": 224}
_DINO_S16 = {"hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
# What from_pretrained raises on folders that make no sense.
_LOAD_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class About:
    """What a report says of an encoder.

    Attributes:
        name: `clip`, `dino` or `efficientnet`.
        text: One line: architecture, view, source.
        fingerprint: sha256 of weights, configuration and view.
        is_of_protocol: Whether its architecture is that of the protocol.
    """

    name: str
    text: str
    fingerprint: str
    is_of_protocol: bool


class ImageEncoder(Protocol):
    """Pictures to directions."""

    @property
    def about(self) -> About:
        """For reports."""

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """Features of pictures in RGB, of length 1: float32 [N, F]."""


@dataclass(frozen=True)
class View:
    """What of a picture is seen: its shorter side resized, the middle cut out, then scaled."""

    resize_px: int
    crop_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures of any size -> float32 [N, 3, crop_px, crop_px]."""
        pixels = np.stack([np.asarray(self.crop(image), np.float32) for image in images]) / 255.0
        scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    def crop(self, image: Image.Image) -> Image.Image:
        """The middle, in RGB."""
        width, height = image.size
        short = min(width, height)
        size = (self.resize_px * width // short, self.resize_px * height // short)
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop_px) / 2) for side in size)
        return resized.crop((left, top, left + self.crop_px, top + self.crop_px))


class ClipEncoder:
    """CLIP's projected features of pictures and texts.

    Args:
        folder: As `openai/clip-vit-base-patch32`: configuration, safetensors, tokenizer.
        device: Where it runs.

    Raises:
        CheckpointError: The folder is not a usable CLIP.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        config = _config(folder, "clip", "openai/clip-vit-base-patch32")
        self._tokenizer = Tokenizer.from_folder(folder)
        self._model, digest = _load(CLIPModel, folder)
        self._device = device
        self._model.to(device)
        vision = self._model.config.vision_config
        side = int(vision.image_size)
        self._view = View(side, side, CLIP_MEAN, CLIP_STD)
        self.about = About(
            "clip",
            f"CLIP {_shape(vision)}, {config['model_type']} from {folder.name}",
            digest,
            is_clip_b32(self._model.config),
        )

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Floats:
        """See `ImageEncoder`."""
        found = []
        for start in range(0, len(images), _BATCH):
            pixels = self._view(images[start : start + _BATCH]).to(self._device)
            states = self._model.vision_model(pixel_values=pixels).pooler_output
            found.append(_unit(self._model.visual_projection(states)))
        return np.concatenate(found)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Floats:
        """Features of prompts, of length 1: float32 [P, F]."""
        ids = torch.from_numpy(self._tokenizer(prompts)).to(self._device)
        states = self._model.text_model(input_ids=ids).pooler_output
        return _unit(self._model.text_projection(states))


class DinoEncoder:
    """DINO's class token, after the last norm.

    Args:
        folder: As `facebook/dino-vits16`: configuration and safetensors.
        view: See `DinoView`.
        device: Where it runs.

    Raises:
        CheckpointError: The folder is not a usable ViT.
    """

    def __init__(self, folder: Path, *, view: DinoView = "crop", device: str = "cpu") -> None:
        _config(folder, "vit", "facebook/dino-vits16")
        self._model, digest = _load(ViTModel, folder, add_pooling_layer=False)
        self._device = device
        self._model.to(device)
        self._digest = digest
        self._folder = folder
        self._set_view(view)

    def _set_view(self, view: DinoView) -> None:
        config = self._model.config
        side = int(config.image_size)
        resize = side if view == "whole" else side * 256 // 224
        self._view = View(resize, side, IMAGENET_MEAN, IMAGENET_STD)
        seen = f"{side} px of {resize}" if view == "crop" else f"{side} px"
        self.about = About(
            "dino",
            f"DINO {_shape(config)}, {seen}, from {self._folder.name}",
            hashlib.sha256(f"{self._digest} {view}".encode()).hexdigest(),
            is_vit_s16(config),
        )

    def seen_as(self, view: DinoView) -> DinoEncoder:
        """The same weights with another view."""
        other = DinoEncoder.__new__(DinoEncoder)
        other.__dict__.update(self.__dict__)
        other._set_view(view)
        return other

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Floats:
        """See `ImageEncoder`."""
        found = []
        for start in range(0, len(images), _BATCH):
            pixels = self._view(images[start : start + _BATCH]).to(self._device)
            found.append(_unit(self._model(pixel_values=pixels).last_hidden_state[:, 0]))
        return np.concatenate(found)


class EfficientNetEncoder:
    """EfficientNet-Lite0's features of 224 px: no part of the protocol, on a scale of its own.

    Raises:
        BackendUnavailable: Its weights are not installed.
    """

    def __init__(self) -> None:
        self._network = load_efficientnet()
        self._view = View(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.about = About(
            "efficientnet",
            "EfficientNet-Lite0, ImageNet weights, 224 px: not of the protocol, a scale of its own",
            measure(weights_file())[1],
            False,
        )

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """See `ImageEncoder`."""
        crops = np.stack([np.asarray(self._view.crop(image), np.uint8) for image in images])
        return _unit(torch.from_numpy(embed(self._network, crops, side_px=224)))


def encoder_device(name: str) -> str:
    """Where encoders run: what `auto` stands for, else the name itself."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unit(features: torch.Tensor) -> Floats:
    found: Floats = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return found


def _shape(config: Any) -> str:
    return f"ViT {config.hidden_size} wide, {config.num_hidden_layers} deep, /{config.patch_size}"


def is_clip_b32(config: Any) -> bool:
    """Whether a `CLIPConfig` is that of the protocol's CLIP."""
    return _is(config.vision_config, _CLIP_B32) and config.projection_dim == 512


def is_vit_s16(config: Any) -> bool:
    """Whether a `ViTConfig` is that of the protocol's DINO."""
    return _is(config, _DINO_S16)


def _is(config: Any, expected: dict[str, int]) -> bool:
    return all(getattr(config, name) == value for name, value in expected.items())


def _config(folder: Path, kind: str, example: str) -> dict[str, Any]:
    """The configuration, checked to be of the kind of model that is asked for."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"encoder {folder} {what}, expected a folder as the hub has for {example}", folder
        )
    config = read_json(folder / "config.json")
    if config.get("model_type") != kind:
        raise CheckpointError(
            f"{folder / 'config.json'} is of a {config.get('model_type')!r}, expected {kind!r}; "
            f"give a folder as the hub has for {example}",
            folder,
        )
    return config


def _load(model: Any, folder: Path, **options: Any) -> tuple[Any, str]:
    """A model in evaluation mode, every tensor from the folder, and a digest of what was read."""
    tensors = read_weights(folder, TEXT_STEM)  # refuses pickles, damage and NaN
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in names:
        digest.update(f"{name} {measure(folder / name)[1]}\n".encode())
    had_bar, verbosity = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # missing tensors are told below
    try:
        loaded, info = model.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"{folder} does not hold a usable model ({' '.join(str(error).split())[:200]}); "
            "copy the folder again",
            folder,
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
    wrong = [*info["missing_keys"], *(name for name, *_ in info.get("mismatched_keys", ()))]
    if wrong:
        raise CheckpointError(
            f"{folder}: tensor {sorted(wrong)[0]!r} is missing or of another shape "
            f"({len(wrong)} of {len(tensors)} such); the weights do not belong to the config.json "
            "beside them, copy both from one model",
            folder,
        )
    return loaded.float().eval().requires_grad_(False), digest.hexdigest()
