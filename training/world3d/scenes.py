"""Scenes of the 3-D world: drawn pictures, rendered grounds, panoramas, each with its words.

Two are held out: no sample for training shows them, though each has words that others teach.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from bootpig_rt.training.scenes import SCENES

SceneKind = Literal["drawn", "ground", "panorama"]
SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)


@dataclass(frozen=True)
class WorldScene:
    """One kind of place.

    Attributes:
        key: Its name in records.
        kind: What draws it.
        phrases: Words that name it.
        source: Of a ground, its material or noise; of a panorama, its file.
        colours: Of a ground and what is behind it, names of `GROUND_COLOURS`.
        repeats: Of a ground, tiles in a length of the subject.
        brightness: Of a panorama, 1 as it is.
    """

    key: str
    kind: SceneKind
    phrases: tuple[str, ...]
    source: str = ""
    colours: tuple[str, str] = ("white", "white")
    repeats: float = 1.0
    brightness: float = 1.0


GROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (236, 236, 234),
    "grey": (178, 180, 184),
    "sky": (168, 208, 240),
    "mist": (206, 220, 228),
    "cream": (238, 226, 204),
    "dark": (52, 50, 58),
    "red": (188, 52, 50),
    "blue": (66, 112, 196),
    "green": (74, 146, 84),
    "purple": (130, 84, 166),
    "yellow": (240, 206, 90),
    "pink": (240, 170, 190),
    "turquoise": (96, 196, 190),
    "grass": (92, 150, 58),
    "asphalt": (104, 106, 112),
}

_GROUNDS = (
    WorldScene("wooden_floor", "ground", ("a wooden floor",), "wooden", ("white", "cream"), 0.9),
    WorldScene("tiled_floor", "ground", ("a tiled floor",), "tiled", ("white", "mist"), 0.8),
    WorldScene(
        "chequered_floor", "ground", ("a chequered floor",), "chequered", ("white", "grey"), 0.45
    ),
    WorldScene("stone_floor", "ground", ("a stone floor",), "granite", ("white", "mist"), 0.7),
    WorldScene("brick_floor", "ground", ("a brick floor",), "brick", ("white", "cream"), 0.8),
    WorldScene("lawn", "ground", ("a lawn", "short green grass"), "noise", ("grass", "sky"), 1.2),
    WorldScene("asphalt", "ground", ("an asphalt road",), "noise", ("asphalt", "sky"), 2.0),
    WorldScene("lava", "ground", ("a field of lava",), "magma", ("white", "dark"), 0.5),
    WorldScene("red_carpet", "ground", ("a red carpet",), "noise", ("red", "cream"), 3.0),
    WorldScene("blue_carpet", "ground", ("a blue carpet",), "noise", ("blue", "cream"), 3.0),
    WorldScene("purple_carpet", "ground", ("a purple carpet",), "noise", ("purple", "white"), 3.0),
    WorldScene("green_carpet", "ground", ("a green carpet",), "noise", ("green", "white"), 3.0),
    WorldScene("white_studio", "ground", ("a white studio",), "plain", ("white", "white")),
    WorldScene("yellow_studio", "ground", ("a yellow studio",), "plain", ("yellow", "yellow")),
    WorldScene("pink_studio", "ground", ("a pink studio",), "plain", ("pink", "pink")),
    WorldScene(
        "turquoise_studio", "ground", ("a turquoise studio",), "plain", ("turquoise", "turquoise")
    ),
)
_PANORAMAS = (
    WorldScene("apartment", "panorama", ("an empty apartment", "an empty room"), "apartment"),
    WorldScene("square", "panorama", ("a city square", "a square in a city"), "city"),
    WorldScene("dawn", "panorama", ("rocky hills at dawn", "hills at dawn"), "dawn"),
    WorldScene("woods", "panorama", ("the woods", "the woods in summer"), "forest"),
    WorldScene("hall", "panorama", ("a white hall", "a hall with curtains"), "hall"),
    WorldScene("night_field", "panorama", ("a field at night",), "night", brightness=0.3),
    WorldScene("park", "panorama", ("a park", "a park with green grass"), "park"),
    WorldScene("misty_field", "panorama", ("a misty field", "a field in the mist"), "sunrise"),
    WorldScene("old_square", "panorama", ("an old town square",), "sunset"),
    WorldScene("harbour", "panorama", ("a harbour", "a harbour in the evening"), "venice"),
    WorldScene("warehouse", "panorama", ("a warehouse", "an old warehouse"), "warehouse"),
    WorldScene("corridor", "panorama", ("a glass corridor",), "bridge"),
)
_DRAWN = tuple(WorldScene(scene.key, "drawn", scene.phrases) for scene in SCENES.values())

WORLD_SCENES: dict[str, WorldScene] = {
    scene.key: scene for scene in (*_DRAWN, *_GROUNDS, *_PANORAMAS)
}
HELD_OUT_SCENES = frozenset({"green_carpet", "misty_field"})
FLOATING_SCENES = frozenset({"space"})
"""Where nothing stands and no shadow falls."""


def scenes_of(kind: SceneKind) -> tuple[str, ...]:
    """Keys of the scenes of a kind."""
    return tuple(scene.key for scene in WORLD_SCENES.values() if scene.kind == kind)


def held_out_combination(noun: str) -> str:
    """The scene in which a class is never seen in training: one by chance, the same everywhere."""
    keys = sorted(set(WORLD_SCENES) - HELD_OUT_SCENES)
    digest = hashlib.sha256(f"scene of {noun}".encode()).digest()
    return keys[int.from_bytes(digest[:8], "big") % len(keys)]
