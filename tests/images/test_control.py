"""Maps as they are given: by kind, with scales and intervals for all of them or for each."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ImageError, ParameterError
from bootpig_rt.images.control import Control, load_controls

GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
BOTH = {"depth": GREY, "canny": GREY}


def test_scales_and_intervals_are_for_all_maps_or_for_each() -> None:
    for scales in (0.5, [0.5, 0.5], {"depth": 0.5, "canny": 0.5}):
        assert [one.scale for one in load_controls(BOTH, scales)] == [0.5, 0.5]
    found = load_controls(BOTH, [0.25, 2.0], [(0.0, 0.5), (0.5, 1.0)])
    assert [(one.kind, one.scale, one.interval) for one in found] == [
        ("depth", 0.25, (0.0, 0.5)),
        ("canny", 2.0, (0.5, 1.0)),
    ]
    again = load_controls(found)
    assert [one.scale for one in again] == [0.25, 2.0]
    assert load_controls(None) == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((None, 0.5), "control_scale is given without control_image"),
        ((None, 1.0, (0.0, 0.5)), "control_interval is given without control_image"),
        ((BOTH, [0.5]), "control_scale has 1 values for 2 maps .depth, canny."),
        ((BOTH, {"depth": 0.5}), "control_scale has nothing for canny"),
        ((BOTH, {"pose": 0.5}), "control_scale is given for 'pose', but control_image has depth"),
        ((BOTH, -0.5), "control_scale is -0.5, expected a number from 0 to 10"),
        ((BOTH, float("nan")), "control_scale is nan"),
        ((BOTH, "all"), "control_scale is 'all', expected one value for all maps"),
        ((BOTH, 1.0, (0.5, 0.5)), "control_interval is .0.5, 0.5., expected two numbers"),
        ((GREY,), "control_image is of type Image, expected kinds and their maps"),
        (({},), "control_image is of type dict, expected kinds"),
        (({"Depth": GREY},), "the kind of a control is 'Depth'"),
        (([Control.load("depth", GREY)] * 2,), "depth is given twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: Any, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        load_controls(*arguments)


def test_a_photo_is_no_map() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for kind in ("depth", "canny", "outline"):
        with pytest.raises(ImageError, match=f"control_image {kind} is in colour, expected a grey"):
            Control.load(kind, pixels)
    assert Control.load("pose", pixels).size == (8, 8)
    see_through = np.full((8, 8, 4), 100, np.uint8)
    with pytest.raises(ImageError, match="control_image depth has transparent pixels"):
        Control.load("depth", see_through)
    with pytest.raises(ImageError, match="control_image depth"):
        Control.load("depth", "nowhere.png")


def test_a_map_is_sent_without_what_is_made_of_it() -> None:
    control = Control.load("depth", GREY, scale=0.5)
    assert control.for_net is control.for_net
    assert control.for_net.shape == (3, 8, 8)
    assert control.for_net.dtype == np.float32
    data = pickle.dumps(control)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert (again.fingerprint, again.scale) == (control.fingerprint, 0.5)
    np.testing.assert_array_equal(again.for_net, control.for_net)
    with pytest.raises(ValueError, match="read-only"):
        control.pixels[0, 0] = 0
