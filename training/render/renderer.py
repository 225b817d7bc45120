"""Draws a subject in front of a backdrop: picture, mask and depth from one pass.

Shadows come from a map that the sun sees, the contact shadow from one that is seen from below.
Everything is drawn at several times the size and averaged. Equal arguments give equal pixels on
one machine.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.training.render.camera import Camera, from_above
from bootpig_rt.training.render.context import make_context
from bootpig_rt.training.render.light import Light
from bootpig_rt.training.render.mesh import Floats, Mesh, Part, Pixels
from bootpig_rt.training.render.shaders import (
    BACKDROP_FRAGMENT,
    BACKDROP_VERTEX,
    DEPTH_FRAGMENT,
    DEPTH_VERTEX,
    SUBJECT_FRAGMENT,
    SUBJECT_VERTEX,
)

SHADOW_PX, SHADOW_RADIUS = 384, 1.0
CONTACT_PX, CONTACT_REACH, CONTACT_HEIGHT = 96, 0.95, 0.07
MAX_KEPT_MESHES, MAX_KEPT_TEXTURES = 1200, 160
MAX_TEXTURE_PX = 512

Kind = Literal["white", "picture", "ground", "panorama"]
KINDS: tuple[Kind, ...] = ("white", "picture", "ground", "panorama")


@dataclass(frozen=True)
class Look:
    """How a model's own colours are changed.

    Attributes:
        pattern: uint8 [H, W, 4] in sRGB, tiled, laid on from three sides; None for none.
        repeats: Tiles in a length of the subject.
        recolour: float32 [3, 3], turns sRGB colours.
    """

    pattern: Pixels | None = None
    repeats: float = 2.0
    recolour: Floats = field(default_factory=lambda: np.eye(3, dtype=np.float32))


@dataclass(frozen=True)
class Backdrop:
    """What is behind and under a subject.

    Attributes:
        kind: `white`; a `picture`, uint8 [S, S, 3]; `ground`, a tile uint8 [H, W, 3] under a sky of
            two colours; `panorama`, float32 [H, 2 H, 3].
        image: As the kind says.
        shade: How dark shadows on the ground are, 0 for none, to 1.
        height: Of a panorama's camera, in lengths of the subject.
        turn: Of a panorama, share of a whole turn.
        brightness: Of a panorama, 1 as it is.
        repeats: Tiles of the ground in a length of the subject.
        zenith, horizon: Linear colours of the sky above `ground`.
        tint: Linear, times the ground's tile.
    """

    kind: Kind = "white"
    image: NDArray[Any] | None = None
    shade: float = 0.0
    height: float = 1.5
    turn: float = 0.0
    brightness: float = 1.0
    repeats: float = 1.0
    zenith: tuple[float, float, float] = (1.0, 1.0, 1.0)
    horizon: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Rendering:
    """A picture with what is known of its pixels.

    Attributes:
        picture: uint8 [S, S, 3].
        mask: uint8 [S, S], how much of a pixel is the subject.
        depth: float32 [S, S], distance from the camera in lengths of the subject, at most 200.
    """

    picture: Pixels
    mask: Pixels
    depth: Floats


@dataclass
class _Uploaded:
    """A mesh in the renderer's memory: what draws its parts by each program."""

    buffers: list[Any]
    parts: list[tuple[Part, Any, Any]]

    def release(self) -> None:
        for _, colour, depth in self.parts:
            colour.release()
            depth.release()
        for buffer in self.buffers:
            buffer.release()


class Renderer:
    """Draws with this process's context. Of one thread.

    Args:
        size_px: Side of pictures.
        samples: Samples of a pixel, along each side.

    Raises:
        BackendUnavailable: moderngl or EGL is missing.
    """

    def __init__(self, size_px: int, *, samples: int = 3) -> None:
        self.context = context = make_context()
        self.size_px, self.samples = size_px, samples
        side = size_px * samples
        self._subject = context.program(SUBJECT_VERTEX, SUBJECT_FRAGMENT)
        self._backdrop = context.program(BACKDROP_VERTEX, BACKDROP_FRAGMENT)
        self._depth = context.program(DEPTH_VERTEX, DEPTH_FRAGMENT)
        self._colour = context.texture((side, side), 4)
        self._distance = context.texture((side, side), 1, dtype="f4")
        self._screen = context.framebuffer(
            [self._colour, self._distance], context.depth_renderbuffer((side, side))
        )
        self._shadow = context.depth_texture((SHADOW_PX, SHADOW_PX))
        self._shadow.compare_func = "<="
        self._shadow.repeat_x = self._shadow.repeat_y = False
        self._sun_view = context.framebuffer([], self._shadow)
        self._heights = context.texture((CONTACT_PX, CONTACT_PX), 1, dtype="f4")
        self._below = context.framebuffer(
            [self._heights], context.depth_renderbuffer((CONTACT_PX, CONTACT_PX))
        )
        self._contact = context.texture((CONTACT_PX, CONTACT_PX), 1, dtype="f4")
        self._contact.repeat_x = self._contact.repeat_y = False
        corners = np.array([-1, -1, 3, -1, -1, 3], np.float32)
        self._square = context.vertex_array(
            self._backdrop, [(context.buffer(corners.tobytes()), "2f", "in_corner")]
        )
        self._blank = context.texture((1, 1), 4, b"\xff" * 4)
        self._meshes: OrderedDict[int, tuple[Mesh, _Uploaded]] = OrderedDict()
        self._textures: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        weakref.finalize(self, context.gc)

    def render(
        self,
        mesh: Mesh,
        camera: Camera,
        light: Light,
        backdrop: Backdrop,
        *,
        look: Look | None = None,
        is_flat: bool = False,
    ) -> Rendering:
        """Draw one picture.

        Args:
            mesh: Stands on the ground, with a longest side of about 1.
            camera: Made for it.
            light: On subject and ground.
            backdrop: Behind and under it.
            look: Changes the model's colours.
            is_flat: A drawing, cut out: it is lit evenly.
        """
        context = self.context
        uploaded = self._upload(mesh)
        to_sun = from_above(light.direction, SHADOW_RADIUS)
        context.enable_only(context.DEPTH_TEST)
        self._draw_depth(uploaded, self._sun_view, to_sun)
        if backdrop.shade:
            self._touch(uploaded)
        self._screen.use()
        self._screen.clear(1.0, 1.0, 1.0, 0.0)
        self._shadow.use(0)
        self._draw_backdrop(camera, light, backdrop, to_sun)
        self._draw_subject(uploaded, camera, light, to_sun, look or Look(), is_flat)
        return self._read()

    def _draw_depth(self, uploaded: _Uploaded, target: Any, matrix: NDArray[np.float64]) -> None:
        target.use()
        target.clear(9.0)
        _set(self._depth, "world_to_clip", matrix)
        for part, _, draw in uploaded.parts:
            self._use_base(self._depth, part)
            draw.render()

    def _touch(self, uploaded: _Uploaded) -> None:
        """Where the subject is close above the ground, blurred: the contact shadow."""
        reach, height = CONTACT_REACH, 2.2
        # From below: x and z as they are, low points in front.
        matrix = np.zeros((4, 4))
        matrix[0, 0] = matrix[1, 2] = 1 / reach
        matrix[2, 1], matrix[2, 3], matrix[3, 3] = 2 / height, -0.9, 1
        self._draw_depth(uploaded, self._below, matrix)
        raw = np.frombuffer(self._heights.read(), np.float32).reshape(CONTACT_PX, CONTACT_PX)
        close = np.exp(-np.maximum(raw, 0.0) / CONTACT_HEIGHT)
        close = 0.55 * _blur(close, 2) + 0.45 * _blur(close, 6)
        self._contact.write(np.ascontiguousarray(close, np.float32).tobytes())

    def _draw_backdrop(
        self, camera: Camera, light: Light, backdrop: Backdrop, to_sun: NDArray[np.float64]
    ) -> None:
        program, context = self._backdrop, self.context
        _set(program, "kind", KINDS.index(backdrop.kind))
        _set(program, "clip_to_world", np.linalg.inv(camera.world_to_clip))
        _set(program, "eye", camera.eye)
        for name in (
            "shade",
            "height",
            "turn",
            "brightness",
            "repeats",
            "zenith",
            "horizon",
            "tint",
        ):
            _set(program, name, getattr(backdrop, name))
        _set(program, "contact_reach", CONTACT_REACH)
        self._use_light(program, light, to_sun)
        texture = self._blank if backdrop.image is None else self._texture(backdrop.image)
        texture.use(1)
        _set(program, "image", 1)
        self._contact.use(2)
        _set(program, "contact", 2)
        context.disable(context.DEPTH_TEST)
        self._square.render()
        context.enable(context.DEPTH_TEST)

    def _draw_subject(
        self,
        uploaded: _Uploaded,
        camera: Camera,
        light: Light,
        to_sun: NDArray[np.float64],
        look: Look,
        is_flat: bool,
    ) -> None:
        program = self._subject
        _set(program, "world_to_clip", camera.world_to_clip)
        _set(program, "eye", camera.eye)
        _set(program, "sun", light.sun)
        _set(program, "is_flat", is_flat)
        _set(program, "repeats", look.repeats)
        program["recolour"].write(np.ascontiguousarray(look.recolour.T, np.float32).tobytes())
        program["ambient"].write(np.ascontiguousarray(light.ambient, np.float32).tobytes())
        self._use_light(program, light, to_sun)
        _set(program, "has_pattern", look.pattern is not None)
        pattern = self._blank if look.pattern is None else self._texture(look.pattern)
        pattern.use(2)
        _set(program, "pattern", 2)
        for part, draw, _ in uploaded.parts:
            self._use_base(program, part)
            draw.render()

    def _use_light(self, program: Any, light: Light, to_sun: NDArray[np.float64]) -> None:
        _set(program, "to_sun", light.direction)
        _set(program, "world_to_sun", to_sun)
        _set(program, "softness", light.softness / (2 * SHADOW_RADIUS))
        _set(program, "shadow_map", 0)

    def _use_base(self, program: Any, part: Part) -> None:
        _set(program, "has_base", part.texture is not None)
        texture = self._blank if part.texture is None else self._texture(part.texture)
        texture.use(1)
        _set(program, "base", 1)

    def _read(self) -> Rendering:
        size, n = self.size_px, self.samples
        raw = np.frombuffer(self._colour.read(), np.uint8).reshape(size, n, size, n, 4)
        far = np.frombuffer(self._distance.read(), np.float32).reshape(size, n, size, n)
        # Slice by slice, which numpy does many times faster than over two axes at once.
        total = np.full((size, size, 4), n * n // 2, np.uint16)
        depth = np.full((size, size), np.inf, np.float32)
        for row in range(n):
            for column in range(n):
                total += raw[:, row, :, column]
                np.minimum(depth, far[:, row, :, column], out=depth)
        # OpenGL's rows go up.
        pixels = (total // (n * n)).astype(np.uint8)[::-1]
        depth = np.ascontiguousarray(depth[::-1])
        return Rendering(
            np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]), depth
        )

    def _upload(self, mesh: Mesh) -> _Uploaded:
        if id(mesh) in self._meshes:
            self._meshes.move_to_end(id(mesh))
            return self._meshes[id(mesh)][1]
        context = self.context
        vertices = np.concatenate(
            [mesh.positions, mesh.normals, mesh.uvs, mesh.colours], axis=1
        ).astype(np.float32)
        buffer, parts = context.buffer(vertices.tobytes()), []
        buffers = [buffer]
        for part in mesh.parts:
            run = mesh.indices[part.first : part.first + part.count]
            indices = context.buffer(np.ascontiguousarray(run, np.uint32).tobytes())
            buffers.append(indices)
            colour = context.vertex_array(
                self._subject,
                [(buffer, "3f 3f 2f 4f", "in_position", "in_normal", "in_uv", "in_colour")],
                indices,
            )
            depth = context.vertex_array(
                self._depth,
                [(buffer, "3f 12x 2f 4f", "in_position", "in_uv", "in_colour")],
                indices,
            )
            parts.append((part, colour, depth))
        uploaded = _Uploaded(buffers, parts)
        # The mesh is kept with what was made of it, so that no other has its id.
        self._meshes[id(mesh)] = (mesh, uploaded)
        if len(self._meshes) > MAX_KEPT_MESHES:
            self._meshes.popitem(last=False)[1][1].release()
        return uploaded

    def _texture(self, pixels: NDArray[Any]) -> Any:
        """An array as a texture: uint8 with smaller levels, float32 as it is."""
        if id(pixels) in self._textures:
            self._textures.move_to_end(id(pixels))
            return self._textures[id(pixels)][1]
        height, width, channels = pixels.shape
        if pixels.dtype == np.uint8:
            shown = pixels
            if max(height, width) > MAX_TEXTURE_PX:
                image = Image.fromarray(pixels)
                image.thumbnail((MAX_TEXTURE_PX, MAX_TEXTURE_PX), Image.Resampling.BOX)
                shown = np.asarray(image)
                height, width = shown.shape[:2]
            texture = self.context.texture(
                (width, height), channels, np.ascontiguousarray(shown).tobytes(), alignment=1
            )
            texture.build_mipmaps()
            texture.filter = (self.context.LINEAR_MIPMAP_LINEAR, self.context.LINEAR)
        else:
            texture = self.context.texture(
                (width, height),
                channels,
                pixels.astype(np.float16).tobytes(),
                dtype="f2",
                alignment=1,
            )
            texture.repeat_y = False
        self._textures[id(pixels)] = (pixels, texture)
        if len(self._textures) > MAX_KEPT_TEXTURES:
            self._textures.popitem(last=False)[1][1].release()
        return texture


def _set(program: Any, name: str, value: Any) -> None:
    """Set a uniform; one that the compiler found to be of no use is not there."""
    if name not in program:
        return
    if isinstance(value, np.ndarray):
        # OpenGL takes matrices column by column.
        program[name].write(np.ascontiguousarray(value.T, np.float32).tobytes())
    else:
        program[name].value = value


def _blur(values: Floats, radius_px: int) -> Floats:
    """Two box blurs, which together are soft, [H, W]; the outside is 0."""
    for axis in (0, 1, 0, 1):
        wide = [(0, 0), (0, 0)]
        wide[axis] = (radius_px + 1, radius_px)
        total = np.cumsum(np.pad(values, wide), axis=axis)
        count = values.shape[axis]
        high = np.take(total, np.arange(2 * radius_px + 1, 2 * radius_px + 1 + count), axis=axis)
        low = np.take(total, np.arange(count), axis=axis)
        values = ((high - low) / (2 * radius_px + 1)).astype(np.float32)
    return values
