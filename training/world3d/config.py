"""Settings of the 3-D world; `training/configs/world3d.toml` says what each does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import read_config
from bootpig_rt.training.world3d.scenes import SCENE_KINDS, WORLD_SCENES, scenes_of

DEFAULTS_FILE = Path(__file__).parents[1] / "configs" / "world3d.toml"

Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=0)]


class SceneWeights(Struct, frozen=True, forbid_unknown_fields=True):
    """How often each kind of scene is drawn; only their ratios count."""

    drawn: Weight = 0.4
    ground: Weight = 0.3
    panorama: Weight = 0.3

    def as_tuple(self) -> tuple[float, float, float]:
        """In the order of the kinds."""
        return self.drawn, self.ground, self.panorama


class SizeWeights(Struct, frozen=True, forbid_unknown_fields=True):
    """How often a subject is small, of no size that is told, large, close."""

    small: Weight = 0.15
    normal: Weight = 0.6
    large: Weight = 0.15
    close: Weight = 0.1

    def as_tuple(self) -> tuple[float, float, float, float]:
        """In the order of the sizes."""
        return self.small, self.normal, self.large, self.close


class World3dConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What a sample may look like.

    Attributes:
        size_px: Side of pictures.
        drawing_share: Share of subjects that are drawings.
        side_share: Share of small and normal subjects on the left, and as many on the right.
        far_view_share: Share of samples whose first reference is from at least 30 degrees away.
        near_view_deg: The others' first reference is from at most so many degrees to either side;
            below 10, from as near in height too.
        hue_probability: How often colours of textured models and drawings are turned.
        reference_counts: How often there are one, two, three and four references.
        reference_length: Longest side of the subject in a reference, as a share of its side.
        keeps_depth: Whether `KEY.depth.png` is written, 16 bits, thousandths of the subject's
            length.
        without_scenes: Keys of scenes that are left out.
        scenes, sizes: How often which.
    """

    size_px: Annotated[int, Meta(ge=8, le=1024)] = 128
    drawing_share: Share = 0.3
    side_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.25
    far_view_share: Share = 0.5
    near_view_deg: Annotated[float, Meta(ge=0, lt=30)] = 28.5
    hue_probability: Share = 0.45
    reference_counts: tuple[Weight, Weight, Weight, Weight] = (0.5, 0.22, 0.14, 0.14)
    reference_length: Annotated[float, Meta(ge=0.2, le=0.9)] = 0.64
    keeps_depth: bool = False
    without_scenes: tuple[str, ...] = ()
    scenes: SceneWeights = SceneWeights()
    sizes: SizeWeights = SizeWeights()

    def __post_init__(self) -> None:
        """Refuse weights of nothing, and scenes that there are not."""
        for name, weights in (
            ("scenes", self.scenes.as_tuple()),
            ("sizes", self.sizes.as_tuple()),
            ("reference_counts", self.reference_counts),
        ):
            if not sum(weights) > 0:
                raise ConfigError(f"{name} are all 0, expected one above 0 at least")
        for key in self.without_scenes:
            if key not in WORLD_SCENES:
                raise ConfigError(
                    f"without_scenes names {key!r}, expected some of {', '.join(WORLD_SCENES)}"
                )
        for kind, weight in zip(SCENE_KINDS, self.scenes.as_tuple(), strict=True):
            if weight and not set(scenes_of(kind)) - set(self.without_scenes):
                raise ConfigError(
                    f"without_scenes leaves no {kind} scene, but scenes.{kind} is {weight}; "
                    "make it 0"
                )


def load_world_config(path: Path | None, overrides: list[str]) -> World3dConfig:
    """Read the settings from a TOML file, by default our own, and apply `key=value` overrides.

    Raises:
        ConfigError: As for `read_config`.
    """
    return read_config(path or DEFAULTS_FILE, overrides, World3dConfig)
