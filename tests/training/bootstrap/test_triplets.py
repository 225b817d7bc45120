"""Triplets: references as a pair reads them; pairs are verified between a floor and a ceiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.bootstrap.config import PairsConfig
from bootpig_rt.training.bootstrap.stage import Item, Reject
from bootpig_rt.training.bootstrap.triplets import TripletsStage


def triplets(stage: Any, *items: Item) -> list[Any]:
    return [one for (one,) in stage(list(items))]


def extent(reference: Any) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is not white."""
    dark = (reference < 200).any(axis=-1)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("fill", [0.5, 0.86, 1.0])
def test_a_reference_is_the_subject_alone_in_the_middle_of_white(
    bootstrap_config: Any, make_item: Any, fill: float
) -> None:
    stage = TripletsStage(bootstrap_config(triplets={"fill": fill}))
    (item,) = triplets(stage, make_item(0, {"centre": (0.35, 0.6), "radius": 0.15}))
    (reference,) = item.references
    assert reference.shape == (64, 64, 3)
    left, top, right, bottom = extent(reference)
    assert right - left == pytest.approx(64 * fill, abs=2.1)
    assert (left + right) / 2 == pytest.approx(32, abs=1.1)
    assert (top + bottom) / 2 == pytest.approx(32, abs=1.1)
    if fill < 1:
        assert (reference[0] == 255).all()
    assert item.views[0].picture is not reference


def test_the_reference_of_a_pair_is_the_other_half(bootstrap_config: Any, make_item: Any) -> None:
    config = bootstrap_config(
        pairs={"share": 0.5, "encoder": "phash", "floor": 0.0, "ceiling": 0.999}
    )
    stage = TripletsStage(config)
    red, green = {"colour": (200, 40, 40)}, {"colour": (40, 180, 40), "radius": 0.2, "seed": 1}
    stage._verify = lambda cut_outs: np.array([[1, 0], [0.6, 0.8]], np.float32)
    pair, single = triplets(stage, make_item(0, red, green, is_pair=True), make_item(1, red))
    middle = pair.references[0][32, 32]
    assert middle[1] > 150 > middle[0]  # green: the right half
    assert pair.score("similarity") == pytest.approx(0.6)
    assert single.references[0][32, 32][0] > 150
    assert "similarity" not in dict(single.scores)


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [(0.59, "other_subject"), (0.61, None), (0.96, None), (0.98, "same_picture")],
)
def test_a_pair_has_to_be_alike_and_yet_another_picture(
    bootstrap_config: Any, make_item: Any, similarity: float, expected: str | None
) -> None:
    stage = TripletsStage(bootstrap_config(pairs={"share": 1.0, "encoder": "phash"}))
    rows = np.array([[1, 0], [similarity, np.sqrt(1 - similarity**2)]], np.float32)
    stage._verify = lambda cut_outs: rows
    (found,) = triplets(stage, make_item(0, {}, {}, is_pair=True))
    assert (found.reason if isinstance(found, Reject) else None) == expected


def test_the_same_picture_twice_is_no_pair_and_neither_are_two_subjects(
    bootstrap_config: Any, make_item: Any
) -> None:
    config = bootstrap_config(pairs={"share": 1.0, "floor": 0.6, "ceiling": 0.995})
    stage = TripletsStage(config)
    same, other = triplets(
        stage,
        make_item(0, {}, {}, is_pair=True),
        make_item(1, {}, {"colour": (20, 90, 250), "radius": 0.15}, is_pair=True),
    )
    assert isinstance(same, Reject)
    assert same.reason == "same_picture"
    assert same.picture is not None
    assert same.picture.shape == (64, 128, 3)  # people see both
    assert not isinstance(other, Reject) or other.reason == "other_subject"


def test_fingerprints_are_of_the_target(bootstrap_config: Any, make_item: Any) -> None:
    stage = TripletsStage(bootstrap_config())
    first, again, other = triplets(
        stage,
        make_item(0, {"radius": 0.3}),
        make_item(1, {"radius": 0.3}),
        make_item(2, {"radius": 0.2, "centre": (0.4, 0.6)}),
    )
    assert np.array_equal(first.fingerprint, again.fingerprint)
    assert first.fingerprint @ other.fingerprint < 0.9
    without = TripletsStage(bootstrap_config(filters={"duplicates": "none"}))
    (item,) = triplets(without, make_item(0))
    assert item.fingerprint is None


def test_a_subject_of_a_few_pixels_is_a_reject(bootstrap_config: Any, make_item: Any) -> None:
    stage = TripletsStage(bootstrap_config())
    tiny, fine = triplets(stage, make_item(0, {"radius": 0.03}), make_item(1))
    assert isinstance(tiny, Reject)
    assert tiny.reason == "too_small"
    assert isinstance(fine, Item)


def test_limits_of_pairs_that_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match="floor is 0.98, expected less than ceiling 0.97"):
        PairsConfig(floor=0.98)
