"""What is drawn: colours as their space says, masks, depth, shadows, the same each time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.training.render import context
from bootpig_rt.training.render.camera import Frame, View, frame_subject
from bootpig_rt.training.render.light import Light, sun_at, two_tone
from bootpig_rt.training.render.mesh import Mesh, Part
from bootpig_rt.training.render.patterns import draw_pattern
from bootpig_rt.training.render.renderer import Backdrop, Look, Renderer, Rendering

Box = Callable[..., Mesh]
SIZE_PX = 48
WHITE = np.ones(3, np.float32)
EVEN = Light(sun_at(0, 80), np.zeros(3, np.float32), two_tone(WHITE, WHITE))
SUNNY = Light(sun_at(60, 45), 0.8 * WHITE, two_tone(0.4 * WHITE, 0.3 * WHITE))
PLAIN_GROUND = Backdrop("ground", np.full((4, 4, 3), 200, np.uint8), shade=1.0)


@pytest.fixture(scope="module")
def renderer(egl: None) -> Renderer:
    return Renderer(SIZE_PX)


def shot(
    renderer: Renderer,
    mesh: Mesh,
    light: Light = EVEN,
    backdrop: Backdrop | None = None,
    view: View | None = None,
    **options: object,
) -> Rendering:
    camera = frame_subject(mesh.positions, view or View(30, 15), Frame(0.5, 0.5, 0.75, True))
    return renderer.render(mesh, camera, light, backdrop or Backdrop(), **options)  # type: ignore[arg-type]


def colour(rendering: Rendering) -> NDArray[np.float64]:
    """Median colour of the upper part of the subject, where nothing is shaded by the ground."""
    rows = np.nonzero((rendering.mask > 250).any(axis=1))[0]
    top = slice(rows[0], rows[0] + len(rows) // 3)
    return np.asarray(np.median(rendering.picture[top][rendering.mask[top] > 250], axis=0))


def test_a_linear_colour_and_the_srgb_texture_of_it_look_the_same(
    renderer: Renderer, make_box: Box
) -> None:
    linear = make_box(colour=(0.5, 0.2140, 0.0331, 1))
    texture = np.full((4, 4, 4), 255, np.uint8)
    texture[..., :3] = (188, 127, 51)  # the same in sRGB
    textured = dataclasses.replace(make_box(), parts=(Part(0, 36, texture),))
    one, two = colour(shot(renderer, linear)), colour(shot(renderer, textured))
    assert one == pytest.approx(two, abs=2)
    assert one == pytest.approx([188, 127, 51], abs=6)


def test_the_mask_is_the_subject_and_white_stays_white(renderer: Renderer, make_box: Box) -> None:
    found = shot(renderer, make_box(colour=(0.1, 0.1, 0.1, 1)))
    inside, outside = found.mask == 255, found.mask == 0
    assert found.picture[inside].max() < 140
    assert (found.picture[outside] == 255).all()
    # Edges are mixed, so there are shares in between.
    assert ((found.mask > 0) & (found.mask < 255)).any()
    assert 0.1 < inside.mean() < 0.4


def test_depth_is_nearer_on_the_subject_than_behind_it(renderer: Renderer, make_box: Box) -> None:
    found = shot(renderer, make_box(), backdrop=PLAIN_GROUND)
    inside = found.depth[found.mask == 255]
    assert 0.5 < inside.min() < inside.max() < 5
    # The ground comes nearer from the horizon down.
    column = found.depth[:, 1]
    assert (np.diff(column[column < 100]) < 0).all()


def test_a_shadow_lies_beside_the_subject_away_from_the_sun(
    renderer: Renderer, make_box: Box
) -> None:
    mesh = make_box(0.4, 0.8)
    dark = shot(renderer, mesh, SUNNY, PLAIN_GROUND, View(0, 35))
    bright = shot(renderer, mesh, SUNNY, dataclasses.replace(PLAIN_GROUND, shade=0.0), View(0, 35))
    loss = bright.picture.astype(int).sum(axis=-1) - dark.picture.astype(int).sum(axis=-1)
    loss[dark.mask > 0] = 0
    shaded = np.nonzero(loss > 60)
    assert len(shaded[0]) > 20
    # The sun is on the right, so the shadow is on the left, near the subject.
    assert shaded[1].mean() < SIZE_PX / 2
    assert (loss[:8] == 0).all()
    # The same without a sun: close under the subject it is dark all the same.
    still = shot(renderer, mesh, EVEN, PLAIN_GROUND, View(0, 35)).picture.astype(int)
    free = shot(renderer, mesh, EVEN, dataclasses.replace(PLAIN_GROUND, shade=0.0), View(0, 35))
    assert (free.picture.astype(int) - still).max() > 10


def test_the_side_that_faces_the_sun_is_brighter(renderer: Renderer, make_box: Box) -> None:
    light = dataclasses.replace(SUNNY, direction=sun_at(90, 40))
    lit = colour(shot(renderer, make_box(), light, view=View(80, 5)))
    shaded = colour(shot(renderer, make_box(), light, view=View(-80, 5)))
    assert (lit > shaded + 30).all()


def test_a_look_gives_a_grey_model_its_colours(renderer: Renderer, make_box: Box) -> None:
    look = Look(draw_pattern("striped", "red", "white"), repeats=1.5)
    found = shot(renderer, make_box(), look=look)
    pixels = found.picture[found.mask == 255].astype(int)
    red = (pixels[:, 0] - pixels[:, 1]) > 100
    assert 0.2 < red.mean() < 0.8


def test_turned_colours_are_turned_about_grey(renderer: Renderer, make_box: Box) -> None:
    swap = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
    mesh = make_box(colour=(0.6, 0.1, 0.02, 1))
    before, after = (
        colour(shot(renderer, mesh)),
        colour(shot(renderer, mesh, look=Look(None, 1, swap))),
    )
    assert after == pytest.approx(before[[1, 2, 0]], abs=3)


def test_a_clear_part_is_not_drawn(renderer: Renderer, make_box: Box) -> None:
    assert shot(renderer, make_box(colour=(1, 0, 0, 0.1))).mask.max() == 0


def test_a_panorama_shows_what_lies_in_each_direction(renderer: Renderer, make_box: Box) -> None:
    pixels = np.full((32, 64, 3), 0.02, np.float32)
    pixels[:, 24:40] = (8, 0.02, 0.02)  # around -z, which a camera at +z looks towards
    backdrop = Backdrop("panorama", pixels)
    ahead = shot(renderer, make_box(), backdrop=backdrop, view=View(0, 5)).picture[0]
    behind = shot(renderer, make_box(), backdrop=backdrop, view=View(180, 5)).picture[0]
    turned = dataclasses.replace(backdrop, turn=0.5)
    again = shot(renderer, make_box(), backdrop=turned, view=View(180, 5)).picture[0]
    assert ahead[:, 0].mean() > 150
    assert behind[:, 0].mean() < 100
    assert again[:, 0].mean() > 150


def test_the_same_arguments_give_the_same_pixels(renderer: Renderer, make_box: Box) -> None:
    mesh, other = make_box(0.5), make_box(0.9)
    first = shot(renderer, mesh, SUNNY, PLAIN_GROUND)
    shot(renderer, other, EVEN)
    again = shot(renderer, mesh, SUNNY, PLAIN_GROUND)
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.mask, again.mask)
    assert np.array_equal(first.depth, again.depth)


def test_a_missing_library_or_egl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    context.make_context.cache_clear()
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(BackendUnavailable, match=r"bootpig-rt\[render\]"):
        context.make_context()
    monkeypatch.undo()
    moderngl = pytest.importorskip("moderngl", reason="rendering needs the extra `render`")

    def broken(**_: object) -> object:
        raise RuntimeError("libEGL.so not found")

    monkeypatch.setattr(moderngl, "create_context", broken)
    with pytest.raises(
        BackendUnavailable, match=r"libEGL.so not found.*apt-get install libegl-mesa0"
    ):
        context.make_context()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_triton_may_be_imported_after_the_context_was_made(egl: None) -> None:
    """Each brings an LLVM, and in the wrong order a process crashes."""
    code = (
        "from bootpig_rt.training.render.context import make_context\n"
        "make_context()\nimport triton\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
