"""One sample: placing a drawing, turning its hue, views of references, rejects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bootpig_rt.training import compose
from bootpig_rt.training.captions import Caption
from bootpig_rt.training.compose import (
    CENTRE_X,
    Sample,
    View,
    WorldConfig,
    draw_sample,
    place,
    reference_view,
    reject_reason,
    target_view,
    turn_hue,
    white,
)
from bootpig_rt.training.raster import Pixels
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.synthesize import Subjects

MIDDLE = View(length=0.5, centre=(0.5, 0.5))


def square(colour: tuple[int, int, int], *, half: tuple[int, int, int] | None = None) -> Pixels:
    """A square sprite of one colour; with `half`, its right half has another."""
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, 91, 91), fill=(*colour, 255))
    if half is not None:
        draw.rectangle((48, 4, 91, 91), fill=(*half, 255))
    return np.array(image)


def draw(seed: int, sprite: Pixels, **changes: object) -> Sample:
    """The first draw that passes."""
    for attempt in range(50):
        world = replace(WorldConfig(size_px=16), **changes)  # type: ignore[arg-type]
        sample = draw_sample(np.random.default_rng((seed, attempt)), sprite, "dog", world)
        if isinstance(sample, Sample):
            return sample
    raise AssertionError("fifty draws were rejected")


def box(mask: Pixels) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask > 127)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# Hue --------------------------------------------------------------------------------------------


def test_turning_the_hue_by_a_third_makes_red_to_green_to_blue() -> None:
    red = square((250, 0, 0))
    assert turn_hue(red, 120)[48, 48].tolist() == [0, 250, 0, 255]
    assert turn_hue(red, 240)[48, 48].tolist() == [0, 0, 250, 255]


def test_turning_the_hue_keeps_greys_and_transparency() -> None:
    sprite = square((90, 90, 90), half=(255, 255, 255))
    turned = turn_hue(sprite, 77)
    assert np.abs(turned.astype(int) - sprite).max() <= 1
    assert np.array_equal(turned[..., 3], sprite[..., 3])


# Place ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "x", "y"), [(0.5, 0.5, 0.5), (0.25, 0.3, 0.6), (0.75, 0.5, 0.45)]
)
def test_a_subject_has_the_length_and_centre_of_its_view(length: float, x: float, y: float) -> None:
    _, mask = place(square((200, 0, 0)), View(length, (x, y)), white(64))
    left, top, right, bottom = box(mask)
    assert right - left == pytest.approx(64 * length, abs=1.5)
    assert bottom - top == pytest.approx(64 * length, abs=1.5)
    assert (left + right) / 128 == pytest.approx(x, abs=0.015)
    assert (top + bottom) / 128 == pytest.approx(y, abs=0.015)


def test_the_background_stays_where_the_mask_is_empty() -> None:
    background = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    picture, mask = place(square((200, 0, 0)), MIDDLE, background)
    assert np.array_equal(picture[mask == 0], background[mask == 0])
    assert (picture[mask == 255] == (200, 0, 0)).all()


def test_the_edge_of_a_subject_has_no_dark_fringe() -> None:
    turned = replace(MIDDLE, turn_deg=30)
    picture, mask = place(square((255, 0, 0)), turned, white(64))
    assert (picture[(mask > 0) & (mask < 255)][:, 0] >= 253).all()


def test_a_flip_mirrors_the_subject() -> None:
    sprite = square((200, 0, 0), half=(0, 0, 200))
    plain, _ = place(sprite, MIDDLE, white(64))
    flipped, _ = place(sprite, replace(MIDDLE, is_flipped=True), white(64))
    assert plain[32, 20, 0] > 190 > 50 > plain[32, 44, 0]
    assert np.abs(flipped.astype(int) - plain[:, ::-1]).mean() < 3


def test_a_quarter_turn_moves_the_right_half_up_or_down() -> None:
    sprite = square((200, 0, 0), half=(0, 0, 200))
    picture, _ = place(sprite, replace(MIDDLE, turn_deg=90), white(64))
    assert abs(int(picture[20, 32, 0]) - int(picture[44, 32, 0])) > 150
    assert picture[32, 20].tolist() != [255, 255, 255]


def test_light_darkens_the_subject_and_not_the_ground() -> None:
    picture, mask = place(square((200, 100, 0)), replace(MIDDLE, light=0.5), white(32))
    assert np.abs(picture[mask == 255].astype(int) - (100, 50, 0)).max() <= 1
    assert (picture[mask == 0] == 255).all()


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_a_cropped_subject_misses_a_share_at_one_edge(edge: str) -> None:
    view = replace(MIDDLE, crop_edge=edge, crop_share=0.25)  # type: ignore[arg-type]
    _, whole = place(square((200, 0, 0)), MIDDLE, white(64))
    _, cut = place(square((200, 0, 0)), view, white(64))
    side = ("left", "top", "right", "bottom").index(edge)
    moved = np.abs(np.array(box(cut)) - box(whole))
    assert moved[side] == pytest.approx(8, abs=1.5)  # a quarter of 32 px
    assert np.delete(moved, side).max() <= 1


# Views ------------------------------------------------------------------------------------------


def test_a_target_stands_where_the_caption_says() -> None:
    rng = np.random.default_rng(0)
    for position, x in CENTRE_X.items():
        centres = [target_view(rng, position).centre[0] for _ in range(50)]
        assert np.abs(np.array(centres) - x).max() < 0.05


def test_a_near_view_keeps_how_the_target_is_seen() -> None:
    rng = np.random.default_rng(0)
    target = target_view(rng, "left")
    near = reference_view(rng, target, is_same_view=True)
    assert replace(near, length=target.length, centre=target.centre) == target
    assert near.centre != target.centre


def test_the_reference_is_seen_otherwise_than_the_target_in_at_least_half_of_the_samples() -> None:
    sprite = square((200, 0, 0), half=(0, 0, 200))
    samples = [draw(seed, sprite) for seed in range(200)]
    assert WorldConfig().near_view_probability <= 0.5
    assert np.mean([not sample.is_same_view for sample in samples]) >= 0.5


def test_a_new_view_differs_in_turn_flip_squash_or_crop() -> None:
    rng = np.random.default_rng(0)
    target = target_view(rng, "left")
    views = [reference_view(rng, target, is_same_view=False) for _ in range(200)]
    assert all(view.turn_deg != target.turn_deg for view in views)
    assert {view.is_flipped for view in views} == {True, False}
    assert {view.crop_edge for view in views} == {"none", "left", "right", "top", "bottom"}


def test_the_first_reference_alone_may_share_the_targets_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several references only one is seen as the target is: the others teach other views."""
    drawn: list[tuple[View, View]] = []
    real = compose.reference_view

    def watched(rng: Any, target: View, *, is_same_view: bool) -> View:
        drawn.append((target, real(rng, target, is_same_view=is_same_view)))
        return drawn[-1][1]

    monkeypatch.setattr(compose, "reference_view", watched)
    for near, shares in ((1.0, [True, False, False, False]), (0.0, [False] * 4)):
        for seed in range(5):
            drawn.clear()
            counts = (0.0, 0.0, 0.0, 1.0)
            draw(
                seed,
                square((200, 0, 0), half=(0, 0, 200)),
                near_view_probability=near,
                reference_counts=counts,
            )
            same = [view.turn_deg == target.turn_deg for target, view in drawn[-4:]]
            assert same == shares
            assert len({view.turn_deg for _, view in drawn[-4:]}) == 4


# Samples ----------------------------------------------------------------------------------------


def test_a_sample_is_a_function_of_its_random_numbers() -> None:
    sprite = square((200, 0, 0))
    first, again, other = (draw(seed, sprite) for seed in (1, 1, 2))
    assert np.array_equal(first.target, again.target)
    assert np.array_equal(first.references, again.references)
    assert first.caption == again.caption
    assert not np.array_equal(first.target, other.target)


def test_pictures_of_a_sample_have_the_worlds_size() -> None:
    sample = draw(0, square((200, 0, 0)), size_px=24, reference_counts=(0.0, 0.0, 0.0, 1.0))
    assert sample.target.shape == (24, 24, 3)
    assert sample.mask.shape == (24, 24)
    assert sample.references.shape == (4, 24, 24, 3)
    assert {a.dtype for a in (sample.target, sample.mask, sample.references)} == {np.dtype("u1")}


def test_references_stand_on_white_and_differ_from_one_another() -> None:
    sample = draw(0, square((200, 0, 0)), size_px=32, reference_counts=(0.0, 0.0, 1.0))
    corners = sample.references[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()
    assert not np.array_equal(sample.references[0], sample.references[1])


def test_target_and_reference_show_the_same_turned_hue() -> None:
    for seed in range(10):
        sample = draw(seed, square((200, 40, 40)), size_px=32, hue_probability=1.0)
        expected = turn_hue(square((200, 40, 40)), sample.hue_deg)[48, 48, :3].astype(float)
        ink = sample.references[0][16, 16].astype(float)
        target = np.median(sample.target[sample.mask == 255], axis=0)
        # Light takes away up to a tenth.
        assert (ink <= expected + 1).all()
        assert (ink >= 0.89 * expected - 1).all()
        assert (target <= expected + 1).all()
        assert (target >= 0.89 * expected - 1).all()


def test_the_hue_is_turned_as_often_as_asked() -> None:
    sprite = square((200, 40, 40))
    assert all(draw(seed, sprite, hue_probability=0.0).hue_deg == 0 for seed in range(20))
    assert all(20 <= draw(seed, sprite, hue_probability=1.0).hue_deg <= 340 for seed in range(20))


# Rejects ----------------------------------------------------------------------------------------


def test_a_held_out_scene_is_rejected_and_no_other(subjects: Subjects) -> None:
    held_out = frozenset(set(SCENES) - {"beach"})
    world = WorldConfig(size_px=16)
    scenes, rejects = set(), 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        drawn = draw_sample(rng, subjects.sprites[0], "dog", world, held_out)
        if isinstance(drawn, Sample):
            scenes.add(drawn.caption.scene)
        rejects += drawn == "held_out_combination"
    assert scenes == {"beach"}
    assert rejects > 90


def test_a_subject_that_cannot_be_seen_is_rejected() -> None:
    empty = np.zeros((96, 96, 4), np.uint8)
    drawn = draw_sample(np.random.default_rng(0), empty, "dog", WorldConfig(size_px=16))
    assert drawn == "low_contrast"


def masked(mask: Pixels) -> Sample:
    caption = Caption("dog", "left", "beach", "a beach")
    return Sample(white(16), mask, white(16)[None], caption, False, 0.0)


def test_masks_are_rejected_at_the_border_and_when_too_small_or_too_large() -> None:
    mask = np.zeros((16, 16), np.uint8)
    assert reject_reason(masked(mask)) == "area"
    mask[4:12, 4:12] = 255
    assert reject_reason(masked(mask)) is None
    touching = mask.copy()
    touching[8, 0:5] = 255
    assert reject_reason(masked(touching)) == "touches_border"
    mask[1:15, 1:15] = 255
    assert reject_reason(masked(mask)) == "area"
