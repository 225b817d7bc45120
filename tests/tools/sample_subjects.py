"""Renders sample subjects that are models, for a pair that knows the 3-D world.

python tests/tools/sample_subjects.py [--data data]

All are held out from training: see training/world3d/models.csv. Two views of each, in neutral
light, cut out as the drawings beside them. Needs what `bootpig-rt fetch-data --set models-3d`
fetches. The shipped pair knows drawings alone, so none of them is in bootpig_rt/assets/subjects;
their entries of subjects.json and rows of ATTRIBUTION.md are written by hand.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bootpig_rt.training.render.camera import Frame, View, frame_subject
from bootpig_rt.training.render.mesh import Pixels
from bootpig_rt.training.render.renderer import Backdrop
from bootpig_rt.training.world3d.identities import MODELS_FOLDER, Identity
from bootpig_rt.training.world3d.studio import Studio, daylight, plain_look

SUBJECTS = Path(__file__).resolve().parents[2] / "bootpig_rt" / "assets" / "subjects"
SIDE_PX, LONGEST_PX, RENDERED_PX = 256, 235, 768
VIEWS = (View(32, 16), View(-42, 20))


@dataclass(frozen=True)
class Model:
    """A file name here, and the model that it shows."""

    name: str
    noun: str
    path: str


MODELS = (
    Model("tractor", "tractor", "market-assets/files/models/tractor/model.gltf"),
    Model(
        "chest",
        "chest",
        "kaykit-dungeon-remastered/addons/kaykit_dungeon_remastered/Assets/gltf/chest_gold.glb",
    ),
    Model(
        "burger",
        "burger",
        "kaykit-restaurant-bits/addons/kaykit_restaurant_bits/Assets/gltf/food_burger.gltf",
    ),
    Model("truck", "truck", "market-assets/files/models/truck/model.gltf"),
)


def view_of(model: Model, view: View, studio: Studio) -> Image.Image:
    """A model on nothing, RGBA, centred as the drawings are."""
    path = studio.folder / MODELS_FOLDER / model.path
    mesh = studio.mesh_of(Identity(model.path, model.noun, model.noun, str(path)))
    white = np.ones(3, np.float32)
    light = daylight(view.azimuth_deg + 30, 50, sky=white, ground=white, level=1.0)
    camera = frame_subject(mesh.positions, view, Frame(0.92, 0.5, 0.5))
    found = studio.renderer.render(mesh, camera, light, Backdrop(), look=plain_look(0.0))
    cut = Image.fromarray(np.dstack([straight(found.picture, found.mask), found.mask]))
    cut = cut.crop(cut.getchannel("A").getbbox())
    scale = LONGEST_PX / max(cut.size)
    size = (round(cut.width * scale), round(cut.height * scale))
    small = cut.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    picture = Image.new("RGBA", (SIDE_PX, SIDE_PX))
    picture.paste(small, ((SIDE_PX - size[0]) // 2, (SIDE_PX - size[1]) // 2))
    return picture


def straight(picture: Pixels, mask: Pixels) -> Pixels:
    """Colours without the white that edges were drawn on."""
    share = np.maximum(mask[..., None], 1) / 255
    return np.clip((picture - 255 * (1 - share)) / share + 0.5, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    studio = Studio(parser.parse_args().data, RENDERED_PX)
    for model in MODELS:
        for number, view in enumerate(VIEWS, start=1):
            name = model.name if number == 1 else f"{model.name}_{number}"
            view_of(model, view, studio).save(SUBJECTS / f"{name}.png", optimize=True)
            print(SUBJECTS / f"{name}.png")


if __name__ == "__main__":
    main()
