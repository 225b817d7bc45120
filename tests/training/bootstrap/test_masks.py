"""Masks: SAM and SAM 2 led by finders, removers, plain backgrounds; what finds nothing says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.errors import CheckpointError
from bootpig_rt.training.bootstrap.finders import (
    Box,
    GroundingFinder,
    HeatFinder,
    MiddleFinder,
    instances,
)
from bootpig_rt.training.bootstrap.masks import (
    Found,
    MasksStage,
    NotFound,
    PlainSegmenter,
    SamSegmenter,
    largest_part,
)
from bootpig_rt.training.bootstrap.stage import Item, Reject


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a > 0, b > 0
    return float((a & b).sum() / (a | b).sum())


def cut(stage: Any, *wanted: Item) -> list[Any]:
    return [one for (one,) in stage(list(wanted))]


@pytest.mark.parametrize("source", ["plain", "grabcut"])
def test_a_disc_on_a_plain_background_is_cut_out(
    bootstrap_config: Any, make_item: Any, draw_disc: Any, source: str
) -> None:
    stage = MasksStage(bootstrap_config(masks={"source": source}))
    where = {"centre": (0.45, 0.55), "radius": 0.25}
    first, second = cut(
        stage, make_item(0, where, masked=False), make_item(1, {"radius": 0.3}, masked=False)
    )
    assert iou(first.views[0].mask, draw_disc(**where)[1]) > 0.95
    assert iou(second.views[0].mask, draw_disc(radius=0.3)[1]) > 0.95
    assert set(np.unique(first.views[0].mask)) == {0, 255}
    assert first.score("largest") == 1.0


def test_a_background_that_is_not_plain_is_a_reject(bootstrap_config: Any, make_item: Any) -> None:
    stage = MasksStage(bootstrap_config())
    busy = make_item(0, masked=False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    busy.views[0].picture[:] = noise
    (found,) = cut(stage, busy)
    assert isinstance(found, Reject)
    assert (found.reason, found.index) == ("no_plain_background", 0)
    assert found.picture is not None
    assert np.array_equal(found.picture, noise)


def test_a_plain_background_is_followed_from_the_border_only(draw_disc: Any) -> None:
    picture, disc = draw_disc(radius=0.4)
    hole = draw_disc(radius=0.1)[1]
    picture[hole] = picture[0, 0]  # the background's colour, but inside
    (found,) = PlainSegmenter(24)([picture], ["ring"])
    assert isinstance(found, Found)
    assert iou(found.mask, disc) > 0.99


def test_an_empty_mask_is_a_reject_and_of_several_parts_the_largest_is_kept(
    bootstrap_config: Any, make_item: Any, draw_disc: Any
) -> None:
    stage = MasksStage(bootstrap_config())
    empty = make_item(0, masked=False)
    empty.views[0].picture[:] = 250
    two = make_item(1, {"centre": (0.3, 0.5), "radius": 0.2}, masked=False)
    other, speck = draw_disc(centre=(0.8, 0.5), radius=0.1)
    two.views[0].picture[speck] = other[speck]
    nothing, found = cut(stage, empty, two)
    assert isinstance(nothing, Reject)
    assert nothing.reason == "nothing_found"
    assert iou(found.views[0].mask, draw_disc(centre=(0.3, 0.5), radius=0.2)[1]) > 0.95
    assert found.score("largest") == pytest.approx(0.8, abs=0.02)


def test_both_views_of_a_pair_are_cut_out(
    bootstrap_config: Any, make_item: Any, draw_disc: Any
) -> None:
    stage = MasksStage(bootstrap_config())
    left, right = {"radius": 0.2}, {"radius": 0.35}
    pair, single = cut(
        stage,
        make_item(0, left, right, masked=False, is_pair=True),
        make_item(1, right, masked=False),
    )
    assert iou(pair.views[0].mask, draw_disc(**left)[1]) > 0.95
    assert iou(pair.views[1].mask, draw_disc(**right)[1]) > 0.95
    assert iou(pair.views[1].mask, single.views[0].mask) == 1.0


def test_the_largest_part_of_nothing_is_nothing() -> None:
    mask, share = largest_part(np.zeros((8, 8), bool))
    assert not mask.any()
    assert share == 1.0


def test_a_remover_of_the_users_own_is_a_file(
    bootstrap_config: Any, make_item: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"none\.onnx"):
        MasksStage(bootstrap_config(masks={"source": "onnx", "model": str(tmp_path / "none.onnx")}))


# --- SAM


@pytest.fixture(params=["sam", "sam2"])
def a_sam_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return folder


def sam_config(bootstrap_config: Any, folder: Path, **changes: Any) -> Any:
    settings = {"source": "sam", "model": str(folder), "finder": "centre", "min_score": 0.0}
    return bootstrap_config(masks=settings | changes)


def test_sam_gives_each_picture_the_mask_that_it_gets_alone(
    bootstrap_config: Any, a_sam_folder: Path, draw_disc: Any
) -> None:
    segmenter = SamSegmenter(sam_config(bootstrap_config, a_sam_folder))
    pictures = [draw_disc(radius=r, seed=k)[0] for k, r in enumerate((0.2, 0.3, 0.35))]
    together = segmenter(pictures, ["ball"] * 3)
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = segmenter([picture], ["ball"])
        if isinstance(found, Found):
            assert isinstance(alone, Found)
            assert found.mask.shape == (64, 64)
            assert found.mask.dtype == np.bool_
            # Random weights: logits near 0 everywhere, where the last bit may decide.
            assert (found.mask != alone.mask).mean() < 0.01
            assert found.score == pytest.approx(alone.score, abs=1e-4)
        else:
            assert alone == found


def test_a_mask_that_sam_does_not_trust_is_a_reject(
    bootstrap_config: Any, a_sam_folder: Path, make_item: Any
) -> None:
    stage = MasksStage(sam_config(bootstrap_config, a_sam_folder, min_score=1.0))
    (found,) = cut(stage, make_item(0, masked=False))
    assert isinstance(found, Reject)
    assert found.reason == "low_score"
    assert "SAM expects an IoU of" in found.detail


class Finds:
    """A finder that finds the boxes it is given."""

    def __init__(self, *boxes: list[Box]) -> None:
        self.boxes = list(boxes)

    def __call__(self, pictures: Any, phrases: Any) -> list[list[Box]]:
        assert len(pictures) == len(phrases) == len(self.boxes)
        return self.boxes


def test_what_is_not_found_is_a_reject_and_the_others_keep_their_place(
    bootstrap_config: Any, sam_folder: Path, draw_disc: Any
) -> None:
    config = sam_config(bootstrap_config, sam_folder, several="reject", min_score=0.0)
    segmenter = SamSegmenter(config)
    best, other = Box(0.9, 8, 8, 40, 40), Box(0.5, 44, 44, 60, 60)
    segmenter._finder = Finds([], [best], [best, other])
    boxes: list[Any] = []

    def segment(pictures: Any, wanted: Any) -> list[Any]:
        boxes.extend(wanted)
        return [Found(picture[..., 0] > 0) for picture in pictures]

    segmenter._segment = segment  # type: ignore[method-assign,assignment]
    pictures = [draw_disc(seed=k)[0] for k in range(3)]
    nothing, found, several = segmenter(pictures, ["ball", "cup", "kite"])
    assert nothing == NotFound("nothing_found", "no 'ball' was found")
    assert isinstance(found, Found)
    assert several == NotFound("several", "2 of 'kite' were found")
    assert boxes == [[[8, 8, 40, 40]]]
    segmenter._settings = sam_config(bootstrap_config, sam_folder).masks
    boxes.clear()
    assert isinstance(segmenter(pictures, ["ball", "cup", "kite"])[2], Found)
    assert boxes[1] == [[8, 8, 40, 40]]  # the best of the two


def test_the_box_reaches_sam(bootstrap_config: Any, a_sam_folder: Path, draw_disc: Any) -> None:
    segmenter = SamSegmenter(sam_config(bootstrap_config, a_sam_folder))
    picture = draw_disc()[0]
    seen = []
    inner = segmenter._model.forward

    def forward(**inputs: Any) -> Any:
        seen.append(inputs["input_boxes"].tolist())
        return inner(**inputs)

    segmenter._model.forward = forward
    segmenter._segment([picture, picture], [[[0, 8, 16, 32]], [[1, 2, 3, 4]]])
    assert seen == [[[[0, 8, 16, 32]], [[1, 2, 3, 4]]]]


def test_a_folder_of_something_else_is_no_segmenter(
    bootstrap_config: Any, clip_folder: Path, sam_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is of type 'clip', expected sam or sam2"):
        MasksStage(sam_config(bootstrap_config, clip_folder))
    mixed = tmp_path / "mixed"
    shutil.copytree(sam_folder, mixed)
    shutil.copy(clip_folder / "model.safetensors", mixed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of SamModel, such as"):
        MasksStage(sam_config(bootstrap_config, mixed))


# --- finders


def test_grounding_dino_gives_boxes_by_score_within_the_picture(
    bootstrap_config: Any, grounding_dino_folder: Path, draw_disc: Any
) -> None:
    def find(threshold: float) -> list[list[Box]]:
        settings = {
            "source": "sam",
            "model": "x",
            "finder_model": str(grounding_dino_folder),
            "box_threshold": threshold,
        }
        finder = GroundingFinder(bootstrap_config(masks=settings))
        return finder([draw_disc(seed=k)[0] for k in range(2)], ["ball", "Red panda"])

    found = find(0.0)
    assert len(found) == 2
    for boxes in found:
        assert boxes
        assert [box.score for box in boxes] == sorted((b.score for b in boxes), reverse=True)
        for box in boxes:
            assert 0 <= box.left < box.right <= 64
            assert 0 <= box.top < box.bottom <= 64
    assert find(1.0) == [[], []]


def test_clipseg_gives_a_box_around_each_warm_part(
    bootstrap_config: Any, clipseg_folder: Path, draw_disc: Any
) -> None:
    settings = {
        "source": "sam",
        "model": "x",
        "finder": "clipseg",
        "finder_model": str(clipseg_folder),
        "heat_threshold": 0.0,
    }
    finder = HeatFinder(bootstrap_config(masks=settings))
    for count in (1, 2):
        found = finder([draw_disc(seed=k)[0] for k in range(count)], ["ball", "dog"][:count])
        assert [boxes[0].corners for boxes in found] == [[0, 0, 64, 64]] * count
    heat = np.zeros((32, 32), np.float32)
    heat[4:8, 10:20], heat[20:24, 0:4] = 0.7, 0.9
    finder._threshold = 0.5
    hot, warm = finder._boxes(heat, 64)
    assert hot.corners == [0, 40, 8, 48]
    assert warm.corners == [20, 8, 40, 16]
    assert [hot.score, warm.score] == pytest.approx([0.9, 0.7])
    assert finder._boxes(heat * 0, 64) == []


def test_the_middle_is_a_box_for_who_has_no_finder(bootstrap_config: Any) -> None:
    (boxes,) = MiddleFinder(bootstrap_config())([np.zeros((100, 100, 3), np.uint8)], ["x"])
    assert boxes[0].corners == pytest.approx([10, 10, 90, 90])


def test_boxes_that_overlap_much_are_one_instance() -> None:
    best = Box(0.9, 0, 0, 10, 10)
    same, other = Box(0.8, 1, 1, 10, 10), Box(0.3, 8, 8, 20, 20)
    assert instances([other, same, best]) == [best, other]


def test_finders_of_another_kind_are_refused(
    bootstrap_config: Any, sam_folder: Path, clipseg_folder: Path
) -> None:
    for finder, folder in (("grounding_dino", clipseg_folder), ("clipseg", sam_folder)):
        config = sam_config(bootstrap_config, sam_folder, finder=finder, finder_model=str(folder))
        with pytest.raises(CheckpointError, match="finder .* (cannot be loaded|lacks)"):
            MasksStage(config)
