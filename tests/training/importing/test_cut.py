"""Subjects are cut out by the bootstrap's own stage, in the order in which samples came."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bootpig_rt.training.bootstrap.config import BootstrapConfig, MasksConfig
from bootpig_rt.training.bootstrap.masks import MasksStage
from bootpig_rt.training.importing.candidate import Candidate, Place, Refused
from bootpig_rt.training.importing.cut import Cut
from bootpig_rt.training.importing.fit import Fit, Fitted

pytest.importorskip("cv2")
FIT = Fit(64, is_cut_later=True)


@pytest.fixture
def cut() -> Cut:
    """By colour, two samples at a time."""
    config = BootstrapConfig(output="unused", masks=MasksConfig(source="grabcut", batch_size=2))
    return Cut(partial(MasksStage, config), {}, 0.6)


@pytest.fixture
def bare(discs: SimpleNamespace) -> Candidate:
    """A ball without mask and references."""
    picture = discs.to_bytes(discs.picture(0, 96))
    return Candidate("here", picture, "a photo of a ball, on a carpet", "ball")


def through(cut: Cut, results: list[Any]) -> list[Any]:
    def given() -> Generator[Any, None, None]:
        for number, result in enumerate(results):
            yield Place(0, number), result

    done = list(cut(given()))
    assert [place.number for place, _ in done] == list(range(len(results)))
    return [result for _, result in done]


def test_a_target_without_a_mask_is_cut_out_and_is_its_own_reference(
    cut: Cut, bare: Candidate
) -> None:
    (result,) = through(cut, [FIT(bare)])
    assert isinstance(result, Fitted)
    assert result.mask_origin == "cut_out"
    assert (result.mask[32, 32], result.mask[2, 2]) == (255, 0)
    (reference,) = result.references
    assert reference[2, 32].tolist() == [255, 255, 255]
    assert reference[32, 32, 0] > 200
    assert result.is_whole == (False,)


def test_a_reference_with_background_is_put_on_white_and_a_mask_is_kept(
    cut: Cut, bare: Candidate, discs: SimpleNamespace
) -> None:
    mask = discs.to_bytes(discs.mask(96))
    given = FIT(dataclasses.replace(bare, mask=mask, references=(bare.target,)))
    assert isinstance(given, Fitted)
    assert given.is_whole == (True,)
    (result,) = through(cut, [given])
    assert result.mask_origin == "given"
    assert np.array_equal(result.mask, given.mask)
    assert result.references[0][2, 32].tolist() == [255, 255, 255]


def test_samples_keep_their_order_and_what_is_whole_is_left_alone(
    cut: Cut, bare: Candidate, discs: SimpleNamespace
) -> None:
    whole = FIT(dataclasses.replace(bare, mask=discs.to_bytes(discs.mask(96))))
    refused = Refused("there", "no_caption", "none")
    results = through(cut, [FIT(bare), whole, refused, FIT(bare), FIT(bare), whole])
    assert results[1] is whole
    assert results[2] is refused
    assert results[5] is whole
    assert [each.mask_origin for each in (results[0], results[3], results[4])] == ["cut_out"] * 3


def test_what_the_stage_rejects_is_refused_with_its_reason(cut: Cut, bare: Candidate) -> None:
    fitted = FIT(bare)
    assert isinstance(fitted, Fitted)
    grey = dataclasses.replace(fitted, target=np.full((64, 64, 3), 128, np.uint8))
    (result,) = through(cut, [grey])
    assert isinstance(result, Refused)
    assert (result.name, result.reason) == ("here", "nothing_found")
