"""A world of six things at 16 px, and stages of a few thousand weights that train in a second."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
from msgspec import structs
from PIL import Image, ImageDraw

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.training.compose import WorldConfig
from bootpig_rt.training.config import (
    TABLES,
    ControlConfig,
    DiffusionConfig,
    DistillConfig,
    OptimizerConfig,
    PairSettings,
    SamplesConfig,
    TrainConfig,
    UNetConfig,
    VaeConfig,
)
from bootpig_rt.training.raster import SPRITE_PX, Pixels
from bootpig_rt.training.render.context import make_context
from bootpig_rt.training.render.mesh import Mesh, Part
from bootpig_rt.training.synthesize import Subjects, SynthesisConfig, synthesize

if TYPE_CHECKING:
    from accelerate import Accelerator

    from bootpig_rt.training.trainer import Trainer

SIZE_PX = 16
NOUNS = ("dog", "apple", "school bus", "owl", "crown", "ice cream")
STYLES = ("noto", "twemoji")


def draw_subject(number: int, style: int) -> Pixels:
    """A two-coloured drawing that fills the sprite as real ones do."""
    image = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    draw = ImageDraw.Draw(image)
    body = [
        (220, 40, 40),
        (40, 180, 60),
        (50, 80, 220),
        (230, 200, 40),
        (180, 60, 200),
        (30, 30, 30),
    ]
    if style == 0:
        draw.ellipse((4, 4, 91, 91), fill=(*body[number], 255))
    else:
        draw.rectangle((4, 14, 91, 81), fill=(*body[number], 255))
    draw.ellipse((20, 30, 40, 50), fill=(*body[(number + 2) % 6], 255))
    return np.array(image)


@pytest.fixture(scope="session")
def subjects() -> Subjects:
    """Six things in two styles; a dog is never on a beach or in snow."""
    rows = [(number, style) for number in range(len(NOUNS)) for style in range(len(STYLES))]
    return Subjects(
        sprites=np.stack([draw_subject(*row) for row in rows]),
        nouns=[NOUNS[number] for number, _ in rows],
        concepts=[NOUNS[number].replace(" ", "-") for number, _ in rows],
        styles=[STYLES[style] for _, style in rows],
        held_out_scenes={"dog": frozenset({"beach", "snow"})},
    )


@pytest.fixture(scope="session")
def samples(subjects: Subjects, share: Any) -> Path:
    """24 samples in three shards."""
    world = WorldConfig(size_px=SIZE_PX, reference_counts=(0.5, 0.3, 0.2))
    config = SynthesisConfig(24, seed=3, shard_size=10, world=world)
    folder: Path = share("samples", lambda folder: synthesize(folder, subjects, config))
    return folder


@pytest.fixture(scope="session")
def other_samples(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 samples that are not among `samples`."""
    folder = tmp_path_factory.mktemp("other-samples")
    synthesize(folder, subjects, SynthesisConfig(12, seed=4, world=WorldConfig(size_px=SIZE_PX)))
    return folder


@pytest.fixture(scope="session")
def drawings(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as `fetch-data` leaves it: the first ten drawings are for training."""
    folder = tmp_path_factory.mktemp("drawings")
    splits = ["train"] * 10 + ["held_out_identity", "held_out_concept"]
    entries = [
        {
            "concept": subjects.concepts[row],
            "style": subjects.styles[row],
            "icon": subjects.concepts[row],
            "noun": subjects.nouns[row],
            "category": "Objects",
            "split": split,
        }
        for row, split in enumerate(splits)
    ]
    (folder / "sprites.json").write_text(json.dumps(entries))
    np.savez(folder / "sprites.npz", rgba=subjects.sprites)
    return folder


class MakeConfig(Protocol):
    """`make_config(stage, output, ...)`, see the fixture."""

    def __call__(self, stage: Any, output: Path, **changes: Any) -> TrainConfig:
        """A tiny configuration; a table's fields are given as `diffusion={...}`."""


@pytest.fixture(scope="session")
def make_config(samples: Path) -> MakeConfig:
    """A function that makes the configuration of a tiny stage: 20 steps of 2 samples.

    U-Nets have one level; where two may differ, `unet={"block_channels": (16, 32)}` makes them.
    """

    def make(stage: Any, output: Path, **changes: Any) -> TrainConfig:
        tables: dict[str, Any] = {
            "samples": SamplesConfig(),
            "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=3, ema_decay=0.9),
            "vae": VaeConfig(block_channels=(16, 32), norm_groups=8),
            "unet": UNetConfig(
                block_channels=(16,),
                head_dim=8,
                norm_groups=8,
                text_width=16,
                text_layers=1,
                text_heads=2,
                vocabulary=700,
            ),
            "diffusion": DiffusionConfig(),
            "pair": PairSettings(),
            "distill": DistillConfig(),
            "control": ControlConfig(),
        }
        used = {"samples", "optimizer", *TABLES[stage]}
        tables = {
            name: structs.replace(table, **changes.pop(name, {}))
            for name, table in tables.items()
            if name in used
        }
        settings: dict[str, Any] = {
            "data": str(samples),
            "steps": 20,
            "batch_size": 2,
            "seed": 5,
            "log_every": 5,
            "validate_every": 0,
            "checkpoint_every": 1000,
            **tables,
            **changes,
        }
        return TrainConfig(stage=stage, output=str(output), **settings)

    return make


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs that stand side by side here share their cached latents."""
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture
def make_output(workshop: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that names an output of this test by a word, in the workshop."""
    return lambda name: workshop / f"{tmp_path.name}-{name}"


@pytest.fixture
def _short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and samples: what is drawn is not the point."""
    from bootpig_rt.training import open_data, run
    from bootpig_rt.training.stages import control, diffusion

    for stage in (diffusion, control):
        monkeypatch.setattr(stage, "VALIDATION_STEPS", 2)
    for reader in (open_data, run):
        monkeypatch.setattr(reader, "VALIDATION_SAMPLES", 4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch: tiny tensors gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """An accelerator on the CPU; its state, which is global, is forgotten afterwards."""
    yield new_accelerator()
    forget_accelerator()


@pytest.fixture
def _fresh_accelerator() -> Iterator[None]:
    """For tests of code that makes an accelerator itself."""
    forget_accelerator()
    yield
    forget_accelerator()


def new_accelerator(mixed_precision: str = "no") -> Accelerator:
    from accelerate import Accelerator

    forget_accelerator()
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def forget_accelerator() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Train(Protocol):
    """`train(config, ...)`, see the fixture."""

    def __call__(
        self, config: TrainConfig, *, stop_after: int = 0, max_minutes: float | None = None
    ) -> Trainer:
        """Build the stage anew and run it; with `stop_after`, ask it to stop in that step."""


@pytest.fixture(scope="session")
def train() -> Train:
    """A function that trains a stage as a new process would, and returns its trainer."""
    import torch

    from bootpig_rt.training.run import build_trainer

    def run(
        config: TrainConfig, *, stop_after: int = 0, max_minutes: float | None = None
    ) -> Trainer:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        trainer = build_trainer(config, new_accelerator(config.mixed_precision))
        stage: Any = trainer.stage
        loss = stage.loss

        def stopping_loss(*args: Any) -> Any:
            if trainer.step + 1 == stop_after:
                trainer.ask_to_stop()
            return loss(*args)

        stage.loss = stopping_loss
        try:
            trainer.run(max_minutes=max_minutes)
        finally:
            forget_accelerator()
            torch.set_num_threads(before)
        return trainer

    return run


@pytest.fixture(scope="session")
def vae_result(make_config: MakeConfig, train: Train, share: Any) -> Path:
    """A finished stage `vae`, hardly trained: latents are [4, 8, 8]. Copy it before a change."""
    folder: Path = share("vae", lambda folder: train(make_config("vae", folder, steps=4)))
    return folder / "result"


@pytest.fixture(scope="session")
def base_result(make_config: MakeConfig, train: Train, vae_result: Path, share: Any) -> Path:
    """A finished stage `base`, hardly trained, with defaults of its own; copy before a change."""

    def fill(folder: Path) -> None:
        settings = {"image_guidance_scale": 3.5, "default_steps": 7, "ref_scale": 1.1}
        train(make_config("base", folder, steps=2, start_from=str(vae_result), pair=settings))

    folder: Path = share("base", fill)
    return folder / "result"


@pytest.fixture(scope="session")
def pair_result(make_config: MakeConfig, train: Train, base_result: Path, share: Any) -> Path:
    """A pair with strong guidance; a few steps of training tell its rows apart."""

    def fill(folder: Path) -> None:
        settings = {
            "reference_timestep": "mixed",
            "image_guidance_scale": 3.0,
            "default_steps": 6,
            "ref_scale": 1.0,
        }
        changes: dict[str, Any] = {
            "start_from": str(base_result),
            "optimizer": {"learning_rate": 5e-3, "rsa_learning_rate": 5e-3},
            "diffusion": {"max_references": 2},
            "pair": settings,
        }
        train(make_config("pair", folder, steps=8, **changes))

    folder: Path = share("pair", fill)
    return folder / "result"


def _box(width: float, height: float, colour: tuple[float, ...]) -> Mesh:
    corners: list[Any] = []
    normals: list[Any] = []
    indices: list[int] = []
    for axis in range(3):
        for side in (-1.0, 1.0):
            normal, first, second = np.eye(3)[[axis, (axis + 1) % 3, (axis + 2) % 3]]
            if side < 0:
                normal, first, second = -normal, second, first
            start = len(corners)
            for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                corners.append((normal + u * first + v * second) / 2)
                normals.append(normal)
            indices += [start, start + 1, start + 2, start, start + 2, start + 3]
    positions = np.array(corners, np.float32) * np.array([width, height, width], np.float32)
    positions[:, 1] += height / 2
    return Mesh(
        positions,
        np.array(normals, np.float32),
        np.zeros((24, 2), np.float32),
        np.tile(np.array(colour, np.float32), (24, 1)),
        np.array(indices, np.uint32),
        (Part(0, 36),),
    )


@pytest.fixture(scope="session")
def make_box() -> Callable[..., Mesh]:
    """Makes boxes on the ground: width and depth, height, linear colour."""

    def make(
        width: float = 1.0, height: float = 1.0, colour: tuple[float, ...] = (1, 1, 1, 1)
    ) -> Mesh:
        return _box(width, height, colour)

    return make


@pytest.fixture(scope="session")
def glb_of() -> Callable[..., bytes]:
    """Makes a GLB of a mesh: its colour is the material's, more of the JSON is given by name."""

    def make(mesh: Mesh, **more: Any) -> bytes:
        arrays = [mesh.positions, mesh.normals, mesh.uvs, mesh.indices]
        kinds = [(5126, "VEC3"), (5126, "VEC3"), (5126, "VEC2"), (5125, "SCALAR")]
        chunk, views, accessors = b"", [], []
        for array, (component, kind) in zip(arrays, kinds, strict=True):
            views.append({"buffer": 0, "byteOffset": len(chunk), "byteLength": array.nbytes})
            accessors.append(
                {
                    "bufferView": len(views) - 1,
                    "componentType": component,
                    "count": len(array),
                    "type": kind,
                }
            )
            chunk += array.tobytes()
        document = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "materials": [{"pbrMetallicRoughness": {"baseColorFactor": mesh.colours[0].tolist()}}],
            "meshes": [
                {
                    "primitives": [
                        {
                            "attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2},
                            "indices": 3,
                            "material": 0,
                        }
                    ]
                }
            ],
            "buffers": [{"byteLength": len(chunk)}],
            "bufferViews": views,
            "accessors": accessors,
            **more,
        }
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        size = 28 + len(text) + len(chunk)
        return b"".join(
            [
                struct.pack("<4sII", b"glTF", 2, size),
                struct.pack("<I4s", len(text), b"JSON"),
                text,
                struct.pack("<I4s", len(chunk), b"BIN\0"),
                chunk,
            ]
        )

    return make


@pytest.fixture(scope="session")
def egl() -> None:
    """Skips where nothing can be rendered."""
    try:
        make_context()
    except BackendUnavailable as error:
        pytest.skip(f"nothing is rendered here: {error}")
