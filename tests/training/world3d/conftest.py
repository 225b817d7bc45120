"""A data folder with a few boxes as models, grey ones and coloured ones, drawings and panoramas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.training.render.mesh import Mesh
from bootpig_rt.training.render.patterns import MATERIALS, TEXTURE_FOLDER
from bootpig_rt.training.world3d import identities
from bootpig_rt.training.world3d.catalogue import Model
from bootpig_rt.training.world3d.identities import Identities, load_identities
from bootpig_rt.training.world3d.scenes import WORLD_SCENES

COLOURS = {
    "crate": (0.5, 0.2, 0.05, 1.0),
    "bin": (0.05, 0.3, 0.1, 1.0),
    "anvil": (0.5, 0.5, 0.5, 1),
}
MODELS = [
    *(Model("boxes", f"{noun}.glb", noun, "train") for noun in COLOURS),
    Model("boxes", "held.glb", "crate", "held_out_identity"),
]


def radiance(path: Path) -> None:
    pixels = np.full((16, 32, 4), (90, 110, 130, 128), np.uint8)
    pixels[:8, :, 2] = 200
    pixels[3, 7] = (200, 200, 180, 136)
    path.write_bytes(b"#?RADIANCE\n\n-Y 16 +X 32\n" + pixels.tobytes())


@pytest.fixture(scope="session")
def world_folder(
    make_box: Callable[..., Mesh],
    glb_of: Callable[..., bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("world")
    models = folder / "models"
    (models / "boxes").mkdir(parents=True)
    for k, model in enumerate(MODELS):
        mesh = make_box(0.5 + 0.1 * k, 1.0, COLOURS[model.noun])
        data = glb_of(mesh)
        if model.noun != "anvil":
            # A second box of another colour above it, so that it is not plain.
            data = _two_coloured(glb_of(mesh))
        (models / "boxes" / model.path).write_bytes(data)
    textures = models / "textures" / TEXTURE_FOLDER
    for name in MATERIALS.values():
        (textures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (150, 110, 70)).save(textures / name)
    panoramas = models / "panoramas" / "src" / "hdri"
    panoramas.mkdir(parents=True)
    for scene in WORLD_SCENES.values():
        if scene.kind == "panorama":
            radiance(panoramas / f"{scene.source}.hdr")
    _write_drawings(folder)
    return folder


def _two_coloured(data: bytes) -> bytes:
    """The GLB with the same mesh once more above it, in white."""
    length = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + length])
    again = json.loads(json.dumps(document["meshes"][0]))
    again["primitives"][0].pop("material")
    document["meshes"].append(again)
    document["scenes"] = [{"nodes": [0, 1]}]
    document["nodes"] = [{"mesh": 0}, {"mesh": 1, "translation": [0, 1, 0]}]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    total = (20 + len(text) + len(rest)).to_bytes(4, "little")
    return data[:8] + total + len(text).to_bytes(4, "little") + b"JSON" + text + rest


def _write_drawings(folder: Path) -> None:
    rgba = np.zeros((2, 48, 48, 4), np.uint8)
    rgba[0, 4:44, 10:38] = (200, 40, 40, 255)
    rgba[1, 10:38, 4:44] = (40, 60, 200, 255)
    np.savez_compressed(folder / "sprites.npz", rgba=rgba)
    entries = [
        {"concept": c, "style": "noto", "icon": c, "noun": c, "category": "x", "split": "train"}
        for c in ("kite", "sledge")
    ]
    (folder / "sprites.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def few_models() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "load_catalogue", lambda: tuple(MODELS))
        yield


@pytest.fixture(scope="module")
def people(world_folder: Path, few_models: None) -> Identities:
    return load_identities(world_folder, "train", with_drawings=True)
