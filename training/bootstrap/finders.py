"""Where in a picture is what a phrase names: boxes by GroundingDINO, by CLIPSeg, or the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.folders import (
    check_folder,
    choose_device,
    choose_dtype,
    load_model,
    load_processor,
    loading,
)

SAME_OVERLAP = 0.5
"""Intersection over union from which two boxes are one instance."""

MIDDLE = 0.8
"""Side of the box that stands for "in the middle", as a share of the picture's."""


@dataclass(frozen=True)
class Box:
    """Where an instance is, in pixels, and how sure the finder is, 0 to 1."""

    score: float
    left: float
    top: float
    right: float
    bottom: float

    @property
    def corners(self) -> list[float]:
        """Left, top, right, bottom."""
        return [self.left, self.top, self.right, self.bottom]


class BoxFinder(Protocol):
    """Finds what a phrase names."""

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[list[Box]]:
        """Boxes of each picture, uint8 [S, S, 3], for its own phrase; the best first."""
        ...


def make_finder(config: BootstrapConfig) -> BoxFinder:
    """The configured finder."""
    kinds = {"grounding_dino": GroundingFinder, "clipseg": HeatFinder, "centre": MiddleFinder}
    kind: Any = kinds[config.masks.finder]
    finder: BoxFinder = kind(config)
    return finder


def instances(boxes: Sequence[Box]) -> list[Box]:
    """Boxes of different instances, the best first: of those that overlap much, the best alone."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(_overlap(box, other) < SAME_OVERLAP for other in kept):
            kept.append(box)
    return kept


def _overlap(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box.right - box.left) * (box.bottom - box.top) for box in (a, b)) - shared
    return shared / union if union > 0 else 0.0


class GroundingFinder:
    """GroundingDINO, or MM Grounding DINO, through transformers.

    Raises:
        CheckpointError: The folder is not one of them, or not whole.
    """

    def __init__(self, config: BootstrapConfig) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._settings = config.masks
        path, what = config.masks.finder_model, "finder"
        check_folder(path, what)
        self._device = choose_device(config.device)
        # Its deformable attention has no bf16 kernel on every device.
        self._processor = load_processor(AutoProcessor, path, what)
        self._model = load_model(
            AutoModelForZeroShotObjectDetection, path, what, self._device, torch.float32
        )

    @torch.inference_mode()
    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[list[Box]]:
        """See `BoxFinder`."""
        inputs = self._processor(
            images=[Image.fromarray(picture) for picture in pictures],
            text=[f"{phrase.lower()}." for phrase in phrases],
            padding=True,
            return_tensors="pt",
        ).to(self._device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
            inputs["input_ids"],
            threshold=self._settings.box_threshold,
            text_threshold=self._settings.text_threshold,
            target_sizes=[picture.shape[:2] for picture in pictures],
        )
        return [self._boxes(one, picture) for one, picture in zip(found, pictures, strict=True)]

    def _boxes(self, found: Any, picture: NDArray[np.uint8]) -> list[Box]:
        height, width = picture.shape[:2]
        limits = np.array([width, height, width, height])
        corners = np.clip(found["boxes"].float().cpu().numpy(), 0, limits)
        scores = found["scores"].float().cpu().numpy()
        boxes = [
            Box(float(score), *map(float, place))
            for score, place in zip(scores, corners, strict=True)
        ]
        return instances([box for box in boxes if box.right > box.left and box.bottom > box.top])


class HeatFinder:
    """CLIPSeg through transformers: a heat map of the phrase, whose warm parts are instances.

    Raises:
        CheckpointError: The folder is not CLIPSeg's, or not whole.
    """

    def __init__(self, config: BootstrapConfig) -> None:
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        self._threshold = config.masks.heat_threshold
        path, what = config.masks.finder_model, "finder"
        check_folder(path, what)
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.dtype, self._device)
        with loading(path, what):
            self._processor = load_processor(CLIPSegProcessor, path, what)
        self._model = load_model(CLIPSegForImageSegmentation, path, what, self._device, self._dtype)

    @torch.inference_mode()
    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[list[Box]]:
        """See `BoxFinder`."""
        inputs = self._processor(
            images=[Image.fromarray(picture) for picture in pictures],
            text=list(phrases),
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        logits = self._model(**inputs.to(self._device)).logits.float()
        heat = logits.reshape(len(pictures), *logits.shape[-2:]).sigmoid().cpu().numpy()
        return [
            self._boxes(one, picture.shape[0]) for one, picture in zip(heat, pictures, strict=True)
        ]

    def _boxes(self, heat: NDArray[np.float32], size_px: int) -> list[Box]:
        import cv2

        scale = size_px / heat.shape[0]
        warm = (heat > self._threshold).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(warm)
        boxes = []
        for part in range(1, count):
            left, top, width, height = stats[part, :4] * scale
            score = float(heat[labels == part].max())
            boxes.append(Box(score, left, top, left + width, top + height))
        return sorted(boxes, key=lambda box: -box.score)


class MiddleFinder:
    """No model: the subject is taken to be in the middle."""

    def __init__(self, config: BootstrapConfig) -> None:
        del config

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[list[Box]]:
        """See `BoxFinder`."""
        del phrases
        low, high = (1 - MIDDLE) / 2, (1 + MIDDLE) / 2
        sides = [picture.shape[0] for picture in pictures]
        return [[Box(1.0, low * s, low * s, high * s, high * s)] for s in sides]
