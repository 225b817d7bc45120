"""Models stand on the ground, of one size, wherever and however large their files have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootpig_rt.errors import InputError
from bootpig_rt.training.render.mesh import Mesh, face_normals, join, stand

Box = Callable[..., Mesh]
NUMBERS = st.floats(-50, 50)


@settings(deadline=None, max_examples=60)
@given(away=st.tuples(NUMBERS, NUMBERS, NUMBERS), scale=st.floats(0.01, 100))
def test_a_model_stands_centred_on_the_ground_with_a_longest_side_of_one(
    make_box: Box, away: tuple[float, float, float], scale: float
) -> None:
    mesh = make_box(0.4, 1.0)
    moved = dataclasses.replace(
        mesh, positions=(mesh.positions * scale + np.array(away)).astype(np.float32)
    )
    stood = stand(moved, "box").positions
    tolerance = 1e-4 * (1 + 50 / scale)
    assert stood[:, 1].min() == pytest.approx(0, abs=tolerance)
    assert np.ptp(stood, axis=0).max() == pytest.approx(1, abs=tolerance)
    assert stood[:, [0, 2]].min(0) == pytest.approx(-stood[:, [0, 2]].max(0), abs=tolerance)


def test_a_point_that_no_triangle_uses_moves_nothing(make_box: Box) -> None:
    mesh = make_box()
    far = np.full((1, 3), 99, np.float32)
    stray = dataclasses.replace(
        mesh,
        positions=np.concatenate([mesh.positions, far]),
        normals=np.concatenate([mesh.normals, far]),
        uvs=np.concatenate([mesh.uvs, far[:, :2]]),
        colours=np.concatenate([mesh.colours, np.ones((1, 4), np.float32)]),
    )
    assert np.array_equal(stand(stray, "box").positions[:-1], stand(mesh, "box").positions)


def test_a_model_of_no_extent_or_no_triangles_is_refused(make_box: Box) -> None:
    mesh = make_box()
    with pytest.raises(InputError, match="no extent"):
        stand(dataclasses.replace(mesh, positions=mesh.positions * np.float32("nan")), "box")
    with pytest.raises(InputError, match="no triangles"):
        stand(dataclasses.replace(mesh, indices=mesh.indices[:0]), "box")


def test_joined_meshes_keep_their_triangles_and_materials(make_box: Box) -> None:
    one, two = make_box(1, 1, (1, 0, 0, 1)), make_box(0.5, 2, (0, 0, 1, 1))
    both = join([one, two])
    assert both.num_faces == one.num_faces + two.num_faces
    second = both.parts[1]
    used = both.indices[second.first : second.first + second.count]
    assert np.array_equal(both.positions[used], two.positions[two.indices])
    assert not both.is_plain
    assert one.is_plain


def test_normals_that_a_file_lacks_are_those_of_its_faces(make_box: Box) -> None:
    mesh = make_box()
    assert face_normals(mesh.positions, mesh.indices) == pytest.approx(mesh.normals)
