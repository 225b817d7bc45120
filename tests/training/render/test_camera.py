"""Views are true ones, and the subject lies where its frame says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bootpig_rt.training.render.camera import Camera, Frame, View, frame_subject, from_above
from bootpig_rt.training.render.light import sun_at
from bootpig_rt.training.render.mesh import Mesh

Box = Callable[..., Mesh]
VIEWS = st.builds(View, st.floats(-360, 360), st.floats(0, 60))


def box_of(camera: Camera, mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper left and lower right of a mesh in the picture, as shares of its side."""
    points = np.concatenate([mesh.positions, np.ones((len(mesh.positions), 1))], axis=1)
    clip = points @ camera.world_to_clip.T
    xy = clip[:, :2] / clip[:, 3:] * (0.5, -0.5) + 0.5
    return xy.min(0), xy.max(0)


@settings(deadline=None, max_examples=60)
@given(view=VIEWS, length=st.floats(0.2, 0.7), x=st.floats(0.2, 0.8), y=st.floats(0.5, 0.95))
def test_the_subject_fills_its_frame_from_every_view(
    make_box: Box, view: View, length: float, x: float, y: float
) -> None:
    mesh = make_box(0.6, 1.0)
    low, high = box_of(frame_subject(mesh.positions, view, Frame(length, x, y, stands=True)), mesh)
    assert (high - low).max() == pytest.approx(length, rel=0.02)
    assert (low[0] + high[0]) / 2 == pytest.approx(x, abs=1e-6)
    assert high[1] == pytest.approx(y, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(view=VIEWS)
def test_the_camera_is_where_azimuth_and_elevation_say(make_box: Box, view: View) -> None:
    mesh = make_box()
    eye = frame_subject(mesh.positions, view, Frame(0.5)).eye - (0, 0.5, 0)
    level = math.hypot(eye[0], eye[2])
    assert math.degrees(math.atan2(eye[1], level)) == pytest.approx(view.elevation_deg, abs=1e-6)
    turn = math.degrees(math.atan2(eye[0], eye[2])) - view.azimuth_deg
    assert math.cos(math.radians(turn)) == pytest.approx(1)


def test_the_place_in_the_picture_does_not_change_the_view(make_box: Box) -> None:
    mesh = make_box()
    left = frame_subject(mesh.positions, View(30, 10), Frame(0.4, 0.3))
    right = frame_subject(mesh.positions, View(30, 10), Frame(0.4, 0.7))
    assert np.allclose(left.eye, right.eye)
    assert np.allclose(left.world_to_camera, right.world_to_camera)


@settings(deadline=None, max_examples=60)
@given(azimuth=st.floats(-180, 180), elevation=st.floats(5, 90))
def test_what_is_nearer_to_the_sun_is_in_front_of_what_is_in_its_shadow(
    azimuth: float, elevation: float
) -> None:
    direction = sun_at(azimuth, elevation)
    matrix = from_above(direction, 1.0)
    middle = np.array([0.0, 0.5, 0.0])
    lit, dark = (matrix @ np.append(middle + k * direction, 1.0) for k in (0.4, -0.4))
    assert lit[2] < dark[2]
    if elevation < 89:  # straight above, the view is tilted by a degree
        assert lit[:2] == pytest.approx(dark[:2], abs=0.02)
