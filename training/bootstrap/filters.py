"""The stage that rejects what would teach badly: each check by name, limits in the settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.bootstrap.config import BootstrapConfig, FiltersConfig
from bootpig_rt.training.bootstrap.encoders import Agreement
from bootpig_rt.training.bootstrap.masks import import_cv2
from bootpig_rt.training.bootstrap.stage import Item, Outcome, View

NAME = "filters"
BORDER_SIZE_PX = 512
"""The size of picture that `border_px` is meant for; of others it is as large a share."""


class FiltersStage:
    """Border, area, parts, sharpness, and agreement with the caption where there is a CLIP model.

    Raises:
        CheckpointError: The folder is not CLIP's, or not whole.
        BackendUnavailable: OpenCV is not installed.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        import_cv2()
        self._settings = settings = config.filters
        self.batch_size = settings.batch_size
        self._agreement = (
            Agreement(settings.clip, config.device, config.dtype) if settings.clip else None
        )

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Check each item; the first check that fails is the reason."""
        outcomes = [check_shape(item, self._settings) for item in items]
        left = [k for k, outcome in enumerate(outcomes) if isinstance(outcome, Item)]
        if self._agreement is not None and left:
            pictures = [items[k].views[0].picture for k in left]
            cosines = self._agreement(pictures, [items[k].caption for k in left])
            for k, cosine in zip(left, cosines, strict=True):
                outcomes[k] = self._check_agreement(outcomes[k], float(cosine))
        return [(outcome,) for outcome in outcomes]

    def _check_agreement(self, outcome: Outcome, cosine: float) -> Outcome:
        assert isinstance(outcome, Item)
        least = self._settings.min_agreement
        if cosine < least:
            detail = f"picture and caption have a cosine of {cosine:.3f}, the least is {least:g}"
            return outcome.reject(NAME, "agreement", detail)
        return outcome.with_scores(agreement=cosine)


def check_shape(item: Item, settings: FiltersConfig) -> Outcome:
    """Check an item's masks, and how sharp its subjects are."""
    areas, sharpness = [], []
    for view in item.views:
        mask = _mask_of(view)
        border = border_px(settings, mask.shape[0])
        if border and touches_border(mask, border):
            return item.reject(
                NAME, "border", f"the subject comes within {border} px of the border"
            )
        area = float(mask.mean())
        if not settings.min_area <= area <= settings.max_area:
            limits = f"{100 * settings.min_area:g} to {100 * settings.max_area:g} %"
            detail = f"the subject covers {100 * area:.1f} %, expected {limits}"
            return item.reject(NAME, "area", detail)
        areas.append(area)
        sharpness.append(measure_sharpness(view))
    largest = item.score("largest")
    if largest < settings.min_largest:
        detail = (
            f"the largest part has {100 * largest:.0f} % of the mask, the least is "
            f"{100 * settings.min_largest:g} %"
        )
        return item.reject(NAME, "parts", detail)
    if min(sharpness) < settings.min_sharpness:
        detail = f"sharpness is {min(sharpness):.1f}, the least is {settings.min_sharpness:g}"
        return item.reject(NAME, "blurred", detail)
    return item.with_scores(area=min(areas), sharpness=min(sharpness))


def border_px(settings: FiltersConfig, size_px: int) -> int:
    """The width of the border of a picture of this size."""
    return round(settings.border_px * size_px / BORDER_SIZE_PX)


def touches_border(mask: NDArray[np.bool_], border: int) -> bool:
    """Whether a mask, bool [S, S], has anything in the outermost `border` pixels."""
    inner = mask[border:-border, border:-border]
    return bool(inner.sum() < mask.sum())


def measure_sharpness(view: View) -> float:
    """Variance of the Laplacian of the subject's grey levels, 0 to 255."""
    cv2 = import_cv2()
    grey = cv2.cvtColor(view.picture, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_32F)
    inside = laplacian[_mask_of(view)]
    return float(inside.var()) if inside.size else 0.0


def _mask_of(view: View) -> NDArray[np.bool_]:
    assert view.mask is not None  # the stage before made it
    return view.mask > 127
