"""Filters: each check by name, at its limit and beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bootpig_rt.errors import CheckpointError, ConfigError
from bootpig_rt.training.bootstrap.config import FiltersConfig
from bootpig_rt.training.bootstrap.filters import (
    FiltersStage,
    border_px,
    check_shape,
    measure_sharpness,
    touches_border,
)
from bootpig_rt.training.bootstrap.stage import Item, Reject, View


def reason(outcome: Any) -> str:
    return outcome.reason if isinstance(outcome, Reject) else "accepted"


def test_the_border_is_as_large_a_share_of_every_size() -> None:
    settings = FiltersConfig(border_px=25)
    assert [border_px(settings, size) for size in (512, 1024, 64)] == [25, 50, 3]


def test_a_mask_touches_the_border_from_its_last_pixel_on() -> None:
    mask = np.zeros((64, 64), bool)
    mask[3:61, 3:61] = True
    assert not touches_border(mask, 3)
    for place in ((2, 30), (61, 30), (30, 2), (30, 61)):
        touching = mask.copy()
        touching[place] = True
        assert touches_border(touching, 3)


@pytest.mark.parametrize(
    ("disc", "settings", "expected"),
    [
        ({"radius": 0.25}, {}, "accepted"),
        ({"radius": 0.25, "centre": (0.27, 0.5)}, {}, "border"),
        ({"radius": 0.25, "centre": (0.27, 0.5)}, {"border_px": 0}, "accepted"),
        ({"radius": 0.1}, {}, "area"),
        ({"radius": 0.1}, {"min_area": 0.02}, "accepted"),
        ({"radius": 0.44}, {"max_area": 0.5}, "area"),
        ({"radius": 0.25}, {"min_sharpness": 1e6}, "blurred"),
    ],
)
def test_each_limit_rejects_by_its_name(
    make_item: Any, disc: dict[str, Any], settings: dict[str, Any], expected: str
) -> None:
    outcome = check_shape(make_item(3, disc), FiltersConfig(**settings))
    assert reason(outcome) == expected
    assert outcome.index == 3


def test_a_mask_in_parts_is_a_reject(make_item: Any) -> None:
    item = make_item(0).with_scores(largest=0.94)
    outcome = check_shape(item, FiltersConfig())
    assert reason(outcome) == "parts"
    assert isinstance(outcome, Reject)
    assert outcome.detail == "the largest part has 94 % of the mask, the least is 95 %"
    assert reason(check_shape(item, FiltersConfig(min_largest=0.9))) == "accepted"


def test_every_view_of_a_pair_is_checked_and_the_worst_counts(make_item: Any) -> None:
    good, small = {"radius": 0.3}, {"radius": 0.2}
    pair = check_shape(make_item(0, good, small), FiltersConfig())
    assert isinstance(pair, Item)
    assert pair.score("area") == pytest.approx(np.pi * 0.2**2, rel=0.05)
    assert reason(check_shape(make_item(0, good, {"radius": 0.1}), FiltersConfig())) == "area"
    aside = {"radius": 0.25, "centre": (0.27, 0.5)}
    assert reason(check_shape(make_item(0, good, aside), FiltersConfig())) == "border"


def test_a_blurred_subject_is_less_sharp_whatever_its_background(make_item: Any) -> None:
    (view,) = make_item(0, {"radius": 0.3}).views
    rng = np.random.default_rng(0)
    textured = view.picture.copy()
    inside = view.mask > 0
    textured[inside] = rng.integers(0, 256, (int(inside.sum()), 3))
    blurred = cv2.GaussianBlur(textured, (0, 0), 2)
    sharp, soft = (measure_sharpness(View(p, view.mask)) for p in (textured, blurred))
    assert soft < 0.05 * sharp
    # A busy background makes nothing sharp.
    busy = blurred.copy()
    outside = ~cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))).astype(bool)
    busy[outside] = rng.integers(0, 256, (int(outside.sum()), 3))
    assert measure_sharpness(View(busy, view.mask)) == pytest.approx(soft, rel=0.01)


def test_a_reject_shows_the_picture_with_what_is_cut_off_darkened(make_item: Any) -> None:
    item = make_item(0, {"radius": 0.1})
    outcome = check_shape(item, FiltersConfig())
    assert isinstance(outcome, Reject)
    assert outcome.picture is not None
    inside = item.views[0].mask > 0
    assert np.array_equal(outcome.picture[inside], item.views[0].picture[inside])
    assert (outcome.picture[~inside] == item.views[0].picture[~inside] // 3).all()


def test_pictures_that_do_not_show_their_caption_are_rejects(
    bootstrap_config: Any, clip_folder: Path, make_item: Any
) -> None:
    def check(least: float) -> list[Any]:
        settings = {"clip": str(clip_folder), "min_agreement": least}
        stage = FiltersStage(bootstrap_config(filters=settings))
        items = [make_item(k, {"seed": k, "radius": 0.2 + k / 20}) for k in range(3)]
        items[1] = make_item(1, {"radius": 0.05})  # fails before CLIP is asked
        return [one for (one,) in stage(items)]

    cosines = [one.score("agreement") for one in check(0.0) if isinstance(one, Item)]
    found = [reason(one) for one in check(0.0)]
    assert found[1] == "area"
    if not cosines:  # random weights may disagree with everything
        assert found == ["agreement", "area", "agreement"]
    assert [reason(one) for one in check(1.0)] == ["agreement", "area", "agreement"]


def test_a_folder_of_something_else_is_no_clip(bootstrap_config: Any, dino_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is of type 'vit', expected clip"):
        FiltersStage(bootstrap_config(filters={"clip": str(dino_folder)}))


def test_limits_that_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_area is 0.8, expected less than max_area 0.7"):
        FiltersConfig(min_area=0.8)
