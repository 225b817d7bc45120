"""The stage that draws: a text-to-image folder of diffusers, or a pair of ours.

A picture depends on its prompt and on a seed made of the run's seed and its index. In float32 it
is the same to the last bits in any batch.
"""

from __future__ import annotations

import inspect
import logging
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import CheckpointError, NumericalError, OutOfDeviceMemory
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.folders import (
    check_folder,
    choose_device,
    choose_dtype,
    loading,
)
from bootpig_rt.training.bootstrap.stage import Item, Outcome, Stage, View
from bootpig_rt.training.bootstrap.words import draw_place
from bootpig_rt.training.captions import POSITIONS
from bootpig_rt.training.scenes import SCENES

logger = logging.getLogger(__name__)

NAME = "pictures"
MIN_CONTRAST = 2.0
"""Standard deviation of a picture, 0 to 255, under which it shows nothing."""

_SEED, _PLACE = 1, 2


def make_pictures(config: BootstrapConfig) -> Stage:
    """The stage of the configured source."""
    return PairPictures(config) if config.pictures.source == "pair" else DiffusersPictures(config)


def seed_of(config: BootstrapConfig, index: int) -> int:
    """The seed of an item's picture."""
    return int(np.random.SeedSequence((config.seed, index, _SEED)).generate_state(1)[0])


def prompt_of(config: BootstrapConfig, item: Item) -> str:
    """What is drawn for an item: its caption in the template of single pictures or of pairs."""
    if not item.is_pair:
        fields = {"caption": item.caption, "noun": item.noun}
        fields |= {"position": item.position, "scene": item.scene}
        return string.Formatter().vformat(config.pictures.template, (), fields)
    rng = np.random.default_rng((config.seed, item.index, _PLACE))
    place = f"{item.position} {item.scene}".strip()
    other = _world_place(rng) if config.captions.source == "world" else draw_place(rng)
    fields = {"caption": item.caption, "noun": item.noun, "place": place, "other_place": other}
    return string.Formatter().vformat(config.pairs.template, (), fields)


def _world_place(rng: np.random.Generator) -> str:
    scene = SCENES[list(SCENES)[int(rng.integers(len(SCENES)))]]
    return f"{POSITIONS['centre']} {scene.phrases[0]}"


class DiffusersPictures:
    """Any text-to-image pipeline of diffusers: Stable Diffusion 1, 2, XL, few-step ones.

    Raises:
        CheckpointError: The folder is no such pipeline, or not whole.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        self._config = config
        self.batch_size = config.pictures.batch_size
        self._pipe = _load_pipeline(config)
        self._takes = set(inspect.signature(self._pipe.__call__).parameters)
        missing = {"prompt", "generator", "height", "width"} - self._takes
        if missing:
            raise CheckpointError(
                f"text-to-image model {config.pictures.model}: a {type(self._pipe).__name__} takes "
                f"no {', '.join(sorted(missing))}; expected a text-to-image pipeline",
                config.pictures.model,
            )

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Draw each item's prompt."""
        prompts = [prompt_of(self._config, item) for item in items]
        drawn: dict[int, NDArray[np.float32] | None] = {}
        for is_pair in (False, True):  # one launch has one size
            rows = [k for k, item in enumerate(items) if item.is_pair == is_pair]
            if rows:
                seeds = [seed_of(self._config, items[k].index) for k in rows]
                pictures = self._draw([prompts[k] for k in rows], seeds, is_pair)
                drawn.update(zip(rows, pictures, strict=True))
        return [
            (_outcome(item, prompts[k], drawn[k], self._config.size_px),)
            for k, item in enumerate(items)
        ]

    def _draw(
        self, prompts: list[str], seeds: list[int], is_pair: bool
    ) -> list[NDArray[np.float32] | None]:
        """Pictures in [0, 1], [H, W, 3], None where the folder's own safety check objects."""
        settings = self._config.pictures
        arguments: dict[str, Any] = {
            "prompt": prompts,
            # On the CPU, one each: a picture then depends neither on its batch nor on the device.
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "np",
        }
        side = settings.draw_px or self._own_side()
        arguments |= {"height": side, "width": 2 * side if is_pair else side}
        if settings.steps is not None:
            arguments["num_inference_steps"] = settings.steps
        if settings.guidance is not None:
            arguments["guidance_scale"] = settings.guidance
        if settings.negative_prompt:
            arguments["negative_prompt"] = [settings.negative_prompt] * len(prompts)
        try:
            with torch.inference_mode():
                result = self._pipe(**arguments)
        except torch.OutOfMemoryError as error:
            raise OutOfDeviceMemory(
                f"drawing {len(prompts)} pictures of {arguments['width']}x{side} px at once "
                "(pictures.batch_size)"
            ) from error
        unsafe = getattr(result, "nsfw_content_detected", None) or [False] * len(prompts)
        return [
            None if is_unsafe else np.asarray(picture, np.float32)
            for picture, is_unsafe in zip(result.images, unsafe, strict=True)
        ]

    def _own_side(self) -> int:
        module = getattr(self._pipe, "unet", None) or getattr(self._pipe, "transformer", None)
        size = getattr(getattr(module, "config", None), "sample_size", None)
        if not isinstance(size, int):
            return self._config.size_px
        return size * int(getattr(self._pipe, "vae_scale_factor", 8))


def _load_pipeline(config: BootstrapConfig) -> Any:
    from diffusers import AutoPipelineForText2Image

    path, what = config.pictures.model, "text-to-image model"
    index = check_folder(path, what, config="model_index.json")
    device = choose_device(config.device)
    arguments: dict[str, Any] = {}
    checker = Path(path) / "safety_checker"
    if "safety_checker" in index and not any(checker.glob("*.safetensors")):
        if checker.is_dir():
            logger.warning("%s: its safety checker has no safetensors and is left out", path)
        arguments = {"safety_checker": None, "requires_safety_checker": False}
    parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]
    missing = [name for name in parts if name not in arguments and not (Path(path) / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{what} {path} lacks its {', '.join(missing)}; copy the whole folder", path
        )
    with loading(path, what):
        pipe = AutoPipelineForText2Image.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=choose_dtype(config.dtype, device),
            **arguments,
        )
        pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class PairPictures:
    """A pair or a bundle of ours as the source: its base draws from the prompt alone.

    Raises:
        CheckpointError: The folder is not a usable pair.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        self._config = config
        self.batch_size = config.pictures.batch_size
        self._pipe = Pipeline(
            config.pictures.model or None, device=config.device, max_batch=self.batch_size
        )

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Draw each item's prompt."""
        settings = self._config.pictures
        side = settings.draw_px or self._pipe.spec.config.sample_size_px
        prompts = [prompt_of(self._config, item) for item in items]
        requests = [
            Request(
                prompt=prompt,
                negative_prompt=settings.negative_prompt,
                seed=seed_of(self._config, item.index),
                num_inference_steps=settings.steps,
                text_guidance_scale=settings.guidance,
                width=2 * side if item.is_pair else side,
                height=side,
            )
            for item, prompt in zip(items, prompts, strict=True)
        ]
        outcomes: list[tuple[Outcome, ...]] = []
        results = self._pipe.map(requests, on_error="return")
        for item, prompt, result in zip(items, prompts, results, strict=True):
            if isinstance(result, NumericalError):
                pixels = np.full((side, side, 3), np.nan, np.float32)
            elif isinstance(result, Exception):
                raise result
            else:
                pixels = np.asarray(result.images[0], np.float32) / 255.0
            outcomes.append((_outcome(item, prompt, pixels, self._config.size_px),))
        return outcomes


def _outcome(item: Item, prompt: str, pixels: NDArray[np.float32] | None, size_px: int) -> Outcome:
    """One item with its views, [size_px, size_px, 3] each, of what was drawn in [0, 1]."""
    item = replace(item, prompt=prompt)
    if pixels is None:
        return item.reject(NAME, "unsafe", "the model's own safety check objects")
    if not np.isfinite(pixels).all():
        return item.reject(NAME, "not_finite", "the model made NaN or Inf; try dtype=float32")
    whole = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)
    side = whole.shape[0]
    halves = (whole[:, :side], whole[:, -side:]) if item.is_pair else (whole,)
    item = replace(item, views=tuple(View(_resized(half, size_px)) for half in halves))
    if min(float(view.picture.std()) for view in item.views) < MIN_CONTRAST:
        return item.reject(NAME, "flat", "a picture of one colour")
    return item


def _resized(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (size_px, size_px):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.LANCZOS), np.uint8)
