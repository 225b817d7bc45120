"""The stage that cuts the subject out of each view: SAM, SAM 2, or a background remover."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import BackendUnavailable, CheckpointError
from bootpig_rt.images.background import BackgroundRemover, load_remover
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.finders import make_finder
from bootpig_rt.training.bootstrap.folders import (
    check_folder,
    choose_device,
    choose_dtype,
    load_model,
)
from bootpig_rt.training.bootstrap.stage import Item, Outcome, View

NAME = "masks"


@dataclass(frozen=True)
class Found:
    """A subject's mask, bool [S, S], and how good it is thought to be, 0 to 1."""

    mask: NDArray[np.bool_]
    score: float = 1.0


@dataclass(frozen=True)
class NotFound:
    """Why there is no mask."""

    reason: str
    detail: str


class Segmenter(Protocol):
    """Cuts subjects out."""

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[Found | NotFound]:
        """The mask of each picture, uint8 [S, S, 3], for what its phrase names."""
        ...


class MasksStage:
    """Finds the mask of every view. Of a mask in several parts the largest is kept.

    Raises:
        CheckpointError: A folder is not what it should be, or not whole.
        BackendUnavailable: OpenCV is not installed.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        import_cv2()
        self.batch_size = config.masks.batch_size
        self._segmenter = _make_segmenter(config)

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Cut out the subject of each view of each item."""
        pictures = [view.picture for item in items for view in item.views]
        phrases = [item.noun for item in items for _ in item.views]
        found = iter(self._segmenter(pictures, phrases))
        return [(_outcome(item, [next(found) for _ in item.views]),) for item in items]


def _make_segmenter(config: BootstrapConfig) -> Segmenter:
    settings = config.masks
    if settings.source == "sam":
        return SamSegmenter(config)
    if settings.source == "plain":
        return PlainSegmenter(settings.tolerance)
    return RemoverSegmenter(load_remover(settings.model or settings.source))


def _outcome(item: Item, found: Sequence[Found | NotFound]) -> Outcome:
    views, largest, scores = [], [], []
    for view, one in zip(item.views, found, strict=True):
        if isinstance(one, NotFound):
            return item.reject(NAME, one.reason, one.detail)
        mask, share = largest_part(one.mask)
        if not mask.any():
            return item.reject(NAME, "nothing_found", f"the mask of {item.noun!r} is empty")
        views.append(View(view.picture, mask.astype(np.uint8) * 255))
        largest.append(share)
        scores.append(one.score)
    return replace(item, views=tuple(views)).with_scores(
        largest=min(largest), mask_score=min(scores)
    )


def largest_part(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
    """The largest connected part of a mask, bool [S, S], and its share of the mask."""
    cv2 = import_cv2()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask, 1.0
    areas = stats[1:, cv2.CC_STAT_AREA]
    part: NDArray[np.bool_] = labels == 1 + int(areas.argmax())
    return part, float(areas.max() / areas.sum())


class SamSegmenter:
    """SAM or SAM 2 through transformers, led by the box of the best instance of the phrase.

    Raises:
        CheckpointError: A folder is not what it should be, or not whole.
    """

    def __init__(self, config: BootstrapConfig) -> None:
        from transformers import Sam2Model, SamModel

        self._settings = config.masks
        path, what = config.masks.model, "segmenter"
        kind = check_folder(path, what).get("model_type")
        kinds = {
            "sam": SamModel,
            "sam2": Sam2Model,
            "sam2_video": Sam2Model,  # what is published holds the tracker too
        }
        if kind not in kinds:
            raise CheckpointError(
                f"{what} {path} is of type {kind!r}, expected sam or sam2; take such a folder", path
            )
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.dtype, self._device)
        self._mean, self._std = _read_normalisation(Path(path))
        self._model = load_model(kinds[kind], path, what, self._device, self._dtype)
        self._side = int(self._model.config.prompt_encoder_config.image_size)
        self._finder = make_finder(config)

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[Found | NotFound]:
        """See `Segmenter`."""
        results: dict[int, Found | NotFound] = {}
        led: list[int] = []
        boxes = []
        for k, found in enumerate(self._finder(pictures, phrases)):
            if not found:
                results[k] = NotFound("nothing_found", f"no {phrases[k]!r} was found")
            elif len(found) > 1 and self._settings.several == "reject":
                results[k] = NotFound("several", f"{len(found)} of {phrases[k]!r} were found")
            else:
                led.append(k)
                boxes.append([found[0].corners])
        if led:
            masks = self._segment([pictures[k] for k in led], boxes)
            results.update(zip(led, masks, strict=True))
        return [results[k] for k in range(len(pictures))]

    @torch.inference_mode()
    def _segment(
        self, pictures: list[NDArray[np.uint8]], boxes: list[list[list[float]]]
    ) -> list[Found | NotFound]:
        """Masks for one box each, by the best of SAM's three answers."""
        # A square picture fills SAM's square: it is resized, and nothing is padded.
        size_px = pictures[0].shape[0]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self._device)
        pixels = torch.nn.functional.interpolate(
            pixels.float(), (self._side, self._side), mode="bilinear", antialias=True
        )
        mean, std = (t.to(self._device)[:, None, None] for t in (self._mean, self._std))
        places = torch.tensor(boxes, device=self._device) * (self._side / size_px)
        output = self._model(
            pixel_values=((pixels / 255.0 - mean) / std).to(self._dtype),
            input_boxes=places.to(self._dtype),
            multimask_output=True,
        )
        scores = output.iou_scores[:, 0].float()
        best = scores.argmax(dim=-1)
        rows = torch.arange(len(pictures), device=best.device)
        logits = output.pred_masks[:, 0][rows, best].float()[:, None]
        large = torch.nn.functional.interpolate(logits, (size_px, size_px), mode="bilinear")
        found: list[Found | NotFound] = []
        best_scores = scores[rows, best].tolist()
        for mask, score in zip(large[:, 0].cpu().numpy() > 0, best_scores, strict=True):
            if score < self._settings.min_score:
                found.append(
                    NotFound(
                        "low_score",
                        f"SAM expects an IoU of {score:.2f}, the limit is "
                        f"{self._settings.min_score:g}",
                    )
                )
            else:
                found.append(Found(mask, score))
        return found


def _read_normalisation(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the pixels, [3] each, that a folder's model was trained with.

    Raises:
        CheckpointError: Its preprocessing cannot be read.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"segmenter {folder} has no {names[0]}; copy the whole folder", folder
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("image_processor", values)
        return torch.tensor(values["image_mean"]), torch.tensor(values["image_std"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"segmenter {folder}: {path.name} cannot be read: {error}", folder
        ) from (error)


class RemoverSegmenter:
    """A background remover: what it takes for the subject, whatever the phrase says."""

    def __init__(self, remover: BackgroundRemover) -> None:
        self._remover = remover

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[Found | NotFound]:
        """See `Segmenter`."""
        del phrases
        alphas = [self._remover(Image.fromarray(picture)) for picture in pictures]
        return [Found(np.asarray(alpha) > 127) for alpha in alphas]


class PlainSegmenter:
    """For subjects on a plain background: whatever the border's colour does not reach.

    From every pixel of the border that is like the border's median, its colour is followed inwards.
    """

    def __init__(self, tolerance: int) -> None:
        self._tolerance = tolerance

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]], phrases: Sequence[str]
    ) -> list[Found | NotFound]:
        """See `Segmenter`."""
        del phrases
        return [self._cut(picture) for picture in pictures]

    def _cut(self, picture: NDArray[np.uint8]) -> Found | NotFound:
        cv2 = import_cv2()
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        colour = np.median(border, axis=0)
        like = (np.abs(picture.astype(np.float32) - colour) <= self._tolerance).all(axis=-1)
        share = float((np.abs(border - colour) <= self._tolerance).all(axis=-1).mean())
        if share < 0.75:
            return NotFound(
                "no_plain_background", f"{100 * share:.0f} % of the border has one colour"
            )
        _, labels = cv2.connectedComponents(like.astype(np.uint8), connectivity=4)
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        return Found(~(like & np.isin(labels, np.unique(edges))))


def import_cv2() -> Any:
    """OpenCV.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise BackendUnavailable(
            "cutting out needs OpenCV, which is not installed; pip install 'bootpig-rt[bootstrap]'"
        ) from error
    return cv2
