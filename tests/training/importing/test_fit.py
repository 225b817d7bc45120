"""Pictures of others become squares of one size, with a mask and references on white."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ParameterError
from bootpig_rt.training.importing.candidate import Candidate, Refused
from bootpig_rt.training.importing.fit import Fit, Fitted, halves

FIT = Fit(32)


@pytest.fixture
def ball(discs: SimpleNamespace) -> Candidate:
    """A sample with mask and reference."""
    return Candidate(
        "here",
        discs.to_bytes(discs.picture(0)),
        "a photo of a ball, on a carpet",
        "ball",
        discs.to_bytes(discs.mask()),
        (discs.to_bytes(discs.cut_out(0)),),
    )


def fitted(candidate: Candidate, fit: Fit = FIT) -> Fitted:
    result = fit(candidate)
    assert isinstance(result, Fitted), result
    return result


def refused(candidate: Candidate, fit: Fit = FIT) -> str:
    result = fit(candidate)
    assert isinstance(result, Refused), result
    assert result.name == candidate.name
    return result.reason


def is_red(pixel: Any) -> bool:
    return bool(pixel[0] > 200 and pixel[1] < 60 and pixel[2] < 60)


def test_a_whole_sample_is_resized(ball: Candidate) -> None:
    result = fitted(ball)
    assert result.target.shape == (32, 32, 3)
    assert result.mask.shape == (32, 32)
    assert is_red(result.target[16, 16])
    assert result.mask[16, 16] == 255
    assert result.mask[1, 1] == 0
    assert result.mask_origin == "given"


def test_a_reference_on_white_is_shown_as_large_as_pairs_expect_it(ball: Candidate) -> None:
    result = fitted(ball, Fit(80, subject_share=0.6))
    (reference,) = result.references
    rows = np.flatnonzero((reference.min(axis=2) < 128).any(axis=1))
    assert abs(len(rows) - 48) <= 2
    assert is_red(reference[40, 40])
    assert reference[2, 2].tolist() == [255, 255, 255]
    assert result.is_whole == (False,)


def test_without_references_one_is_cut_from_the_target_by_its_mask(ball: Candidate) -> None:
    result = fitted(dataclasses.replace(ball, references=()))
    (reference,) = result.references
    assert is_red(reference[16, 16])
    assert reference[1, 16].tolist() == [255, 255, 255]


def test_a_target_with_transparency_is_its_own_mask(
    ball: Candidate, discs: SimpleNamespace
) -> None:
    picture = discs.picture(0).convert("RGBA")
    picture.putalpha(discs.mask())
    own = dataclasses.replace(ball, target=discs.to_bytes(picture), mask=None, references=())
    result = fitted(own)
    assert result.mask_origin == "transparency"
    assert result.target[1, 1].tolist() == [255, 255, 255]
    assert result.mask[16, 16] == 255


def test_a_mask_may_be_the_transparency_of_a_picture(
    ball: Candidate, discs: SimpleNamespace
) -> None:
    picture = Image.new("RGBA", (40, 40))
    picture.putalpha(discs.mask())
    result = fitted(dataclasses.replace(ball, mask=discs.to_bytes(picture)))
    assert np.array_equal(result.mask, fitted(ball).mask)


def test_without_a_mask_all_of_the_picture_is_the_subject(ball: Candidate) -> None:
    result = fitted(dataclasses.replace(ball, mask=None))
    assert result.mask_origin == "none"
    assert result.mask.min() == 255


def test_a_remover_finds_the_subject_where_there_is_no_mask(
    ball: Candidate, discs: SimpleNamespace
) -> None:
    pytest.importorskip("cv2")
    scene = discs.picture(0, 96)
    bare = dataclasses.replace(
        ball, target=discs.to_bytes(scene), mask=None, references=(discs.to_bytes(scene),)
    )
    result = fitted(bare, Fit(64, cut_out="grabcut"))
    assert result.mask_origin == "cut_out"
    assert result.mask[32, 32] == 255
    assert result.mask[2, 2] == 0
    assert result.is_whole == (False,)
    assert fitted(bare, Fit(64)).is_whole == (True,)


def test_a_remover_that_is_none_is_refused(ball: Candidate) -> None:
    with pytest.raises(ParameterError, match="expected 'grabcut' or the path"):
        Fit(32, cut_out="scissors")(dataclasses.replace(ball, mask=None))


@pytest.mark.parametrize("size", [(120, 40), (40, 120)])
def test_the_square_follows_the_subject(
    size: tuple[int, int], ball: Candidate, discs: SimpleNamespace
) -> None:
    scene, mask = Image.new("RGB", size, "white"), Image.new("L", size)
    corner = (size[0] - 40, size[1] - 40)
    scene.paste(discs.picture(0), corner)
    mask.paste(discs.mask(), corner)
    wide = dataclasses.replace(ball, target=discs.to_bytes(scene), mask=discs.to_bytes(mask))
    result = fitted(wide)
    assert np.array_equal(result.mask, fitted(ball).mask)
    assert is_red(result.target[16, 16])


def test_a_mask_of_another_size_but_the_same_shape_is_resized(
    ball: Candidate, discs: SimpleNamespace
) -> None:
    small = discs.to_bytes(discs.mask().resize((20, 20)))
    result = fitted(dataclasses.replace(ball, mask=small))
    assert result.mask[16, 16] == 255


def test_what_cannot_be_used_has_a_reason(ball: Candidate, discs: SimpleNamespace) -> None:
    bare = dataclasses.replace(ball, mask=None, references=())
    long = Image.new("RGB", (120, 40), "red")
    everywhere = discs.to_bytes(Image.new("L", (120, 40), 255))
    left_and_right = Image.new("L", (120, 40), 255)
    left_and_right.paste(0, (30, 0, 90, 40))
    torn = dataclasses.replace(
        ball, target=discs.to_bytes(long), mask=discs.to_bytes(left_and_right)
    )
    assert refused(dataclasses.replace(ball, subject="")) == "no_subject"
    assert refused(dataclasses.replace(ball, target=b"GIF89a")) == "bad_picture"
    assert (
        refused(dataclasses.replace(ball, target=discs.to_bytes(discs.picture(0))[:60]))
        == "bad_picture"
    )
    assert refused(dataclasses.replace(ball, mask=everywhere)) == "mask_shape"
    black = discs.to_bytes(Image.new("L", (40, 40)))
    assert refused(dataclasses.replace(ball, mask=black)) == "empty_mask"
    assert refused(torn) == "not_square"
    assert refused(bare) == "no_reference"
    assert refused(bare, Fit(32, needs_mask=True)) == "no_mask"
    assert refused(ball, Fit(128)) == "too_small"
    assert refused(dataclasses.replace(bare, half="left")) == "not_two_pictures"


@pytest.mark.parametrize("padding", [0, 3, 5])
def test_two_pictures_in_one_are_parted_whatever_lies_between(
    padding: int, ball: Candidate, discs: SimpleNamespace
) -> None:
    left, right = halves(discs.load(discs.two_in_one(1, padding)))
    assert left.size == right.size == (40, 40)
    assert left.getpixel((1, 1)) != (0, 0, 0)
    assert np.asarray(right)[2, 1, 0] > 240
    row = dataclasses.replace(
        ball, target=discs.two_in_one(0, padding), mask=None, references=(), half="right"
    )
    result = fitted(row)
    assert result.target[1, 1].min() > 240  # the cut-out
    assert result.references[0][1, 16].max() < 250  # the scene, whole
    assert (result.mask_origin, result.is_whole) == ("none", (True,))


def test_halves_that_are_no_squares_are_parted_in_the_middle() -> None:
    left, right = halves(Image.new("RGB", (84, 40)))
    assert left.size == right.size == (42, 40)
