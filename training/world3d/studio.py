"""What one process draws with: renderer, meshes, patterns, grounds, panoramas, each read once."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.training.render.cutout import card_of
from bootpig_rt.training.render.gltf import read_gltf
from bootpig_rt.training.render.light import Light, sun_at, two_tone
from bootpig_rt.training.render.mesh import Floats, Mesh, Pixels, stand
from bootpig_rt.training.render.panorama import Panorama, read_panorama
from bootpig_rt.training.render.patterns import draw_pattern, noise_tile, read_material
from bootpig_rt.training.render.renderer import Backdrop, Look, Renderer
from bootpig_rt.training.sprites import load_sprites
from bootpig_rt.training.world3d.identities import MODELS_FOLDER, Identity, NamedLook
from bootpig_rt.training.world3d.scenes import GROUND_COLOURS, WorldScene

MAX_MESHES = 1500


class Studio:
    """Reads and keeps what pictures of a data folder need. One a process and size.

    Args:
        folder: Data folder.
        size_px: Side of pictures.
    """

    def __init__(self, folder: Path, size_px: int) -> None:
        self.folder = folder
        self.renderer = Renderer(size_px)
        self.mesh_of = lru_cache(maxsize=MAX_MESHES)(self._mesh_of)
        self.pattern_of = cache(self._pattern_of)
        self.tile_of = cache(self._tile_of)
        self.panorama_of = cache(self._panorama_of)

    def _mesh_of(self, identity: Identity) -> Mesh:
        """A model, or a drawing on a card.

        Raises:
            StorageError: The model cannot be read.
            InputError: It is damaged.
        """
        if identity.path is None:
            return card_of(self._sprites()[identity.row])
        try:
            mesh = stand(read_gltf(Path(identity.path)), identity.path)
        except OSError as error:
            raise StorageError(
                f"cannot read {identity.path}: {describe_os_error(error)}; run `bootpig-rt "
                "fetch-data --set models-3d` again"
            ) from error
        # A look is to have its own colours, whatever grey the model is.
        return replace(mesh, colours=np.ones_like(mesh.colours)) if mesh.is_plain else mesh

    @cache  # noqa: B019 - a studio lives as long as its process
    def _sprites(self) -> list[Pixels]:
        return [sprite.rgba for sprite in load_sprites(self.folder)]

    def _pattern_of(self, look: NamedLook) -> Pixels:
        """A look's tile, uint8 [H, W, 4]."""
        if look.material:
            return read_material(self.folder / MODELS_FOLDER / "textures", look.material)
        assert look.pattern is not None  # a look has one or the other
        return draw_pattern(look.pattern, look.first, look.second or look.first)

    def _tile_of(self, scene: WorldScene) -> Pixels:
        """A ground's tile, uint8 [H, W, 3]."""
        if scene.source == "noise":
            octaves = (4, 16, 64) if scene.key == "lawn" else (8, 64)
            spread = 26.0 if scene.key == "lawn" else 14.0
            return noise_tile(3, (236, 236, 236), spread, octaves=octaves)
        if scene.source == "plain":
            return np.full((4, 4, 3), 236, np.uint8)
        if scene.source == "chequered":
            return draw_pattern("chequered", "white", "grey")[..., :3].copy()
        return read_material(self.folder / MODELS_FOLDER / "textures", scene.source)[..., :3].copy()

    def _panorama_of(self, name: str) -> Panorama:
        """A panorama by its file's name.

        Raises:
            StorageError: It cannot be read.
        """
        path = self.folder / MODELS_FOLDER / "panoramas" / "src" / "hdri" / f"{name}.hdr"
        try:
            return read_panorama(path)
        except OSError as error:
            raise StorageError(
                f"cannot read {path}: {describe_os_error(error)}; run `bootpig-rt fetch-data "
                "--set models-3d` again"
            ) from error


@cache
def studio_of(folder: Path, size_px: int) -> Studio:
    """The studio of this process."""
    return Studio(folder, size_px)


def daylight(
    azimuth_deg: float, elevation_deg: float, *, sky: Floats, ground: Floats, level: float
) -> Light:
    """A sun with light from sky and ground of these linear colours.

    `level` is how bright a white sheet on the ground is.
    """
    direction = sun_at(azimuth_deg, elevation_deg)
    sun = 0.55 / float(direction[1])
    scale = level / (0.55 + 0.5)
    ambient = two_tone(0.62 * sky, 0.4 * ground)
    return Light(
        direction,
        np.full(3, min(sun, 0.8) * scale, np.float32),
        (ambient * scale).astype(np.float32),
    )


def linear(colour: tuple[int, int, int] | Floats) -> Floats:
    """An sRGB colour, 0 to 255, as linear float32 [3]."""
    c = np.asarray(colour, np.float32) / 255
    return np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92).astype(np.float32)


def hue_turn(angle_deg: float) -> Floats:
    """The matrix that turns hues about the grey axis, float32 [3, 3]."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    third, root = (1 - cos) / 3, math.sqrt(1 / 3) * sin
    return np.array(
        [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ],
        np.float32,
    )


def ground_backdrop(studio: Studio, scene: WorldScene) -> Backdrop:
    """A rendered ground under a plain sky or wall."""
    floor, far = (linear(GROUND_COLOURS[name]) for name in scene.colours)
    horizon = far if scene.source != "plain" else floor * linear((236, 236, 236))
    zenith = 0.8 * far + 0.2
    if scene.colours[1] == "dark":
        zenith = 0.5 * far
    if scene.source == "plain":
        zenith = horizon
    as_tuple = [tuple(float(level) for level in each) for each in (zenith, horizon, floor)]
    return Backdrop(
        "ground",
        studio.tile_of(scene),
        shade=0.72,
        repeats=scene.repeats,
        zenith=as_tuple[0],  # type: ignore[arg-type] # of three levels
        horizon=as_tuple[1],  # type: ignore[arg-type]
        tint=as_tuple[2],  # type: ignore[arg-type]
    )


def plain_look(hue_deg: float) -> Look:
    """A model's own colours, their hue turned."""
    return Look(recolour=hue_turn(hue_deg)) if hue_deg else Look()
