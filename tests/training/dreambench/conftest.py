"""A benchmark of three drawn subjects, and random encoders in the files that a hub has."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

SIDE_PX = 32
PATCH_PX = 8
WIDTH = 16
LAYERS = 2

OBJECTS = [f"a {{0}} {{1}} in place {k}" for k in range(20)]
LIVE = [f"a {{0}} {{1}} in garb {k}" for k in range(20)]
PROPERTIES = ["a red {0} {1}", "a purple {0} {1}", "a shiny {0} {1}", "a wet {0} {1}"]
PROPERTIES += ["a cube shaped {0} {1}"]


def prompts_file(nouns: dict[str, str]) -> str:
    """In the form of the published one."""

    def listed(templates: list[str]) -> str:
        lines = [f"'{each}'.format(unique_token, class_token)" for each in templates]
        return "prompt_list = [\n" + ",\n".join(lines) + "\n]\n"

    classes = "\n".join(f"{name},{noun}" for name, noun in nouns.items())
    return (
        f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\n"
        f"Object Prompts\n\n{listed(OBJECTS + PROPERTIES)}\n"
        f"Live Subject Prompts\n\n{listed(LIVE + PROPERTIES)}"
    )


@pytest.fixture(scope="session")
def dreambench_folder() -> Path:
    """The published photographs, where BOOTPIG_RT_DREAMBENCH says that they are."""
    folder = os.environ.get("BOOTPIG_RT_DREAMBENCH")
    if not folder:
        pytest.skip("BOOTPIG_RT_DREAMBENCH names no folder of `fetch-data --set dreambench`")
    return Path(folder)


@pytest.fixture
def bench_folder(tmp_path: Path) -> Path:
    """dog, dog2 and vase with two or three photographs on white."""
    folder = tmp_path / "bench"
    nouns = {"dog": "dog", "dog2": "dog", "vase": "vase"}
    for number, name in enumerate(nouns):
        (folder / "dataset" / name).mkdir(parents=True)
        for view in range(2 + number % 2):
            image = Image.new("RGB", (64, 64), "white")
            draw = ImageDraw.Draw(image)
            box = (10 + 3 * view, 12, 44 + 4 * number, 50 - 5 * view)
            colour = [(200, 40, 30), (30, 60, 200), (240, 200, 20)][number]
            (draw.rectangle if number == 2 else draw.ellipse)(box, fill=colour)
            image.save(folder / "dataset" / name / f"{view:02}.png")
    (folder / "dataset" / "prompts_and_classes.txt").write_text(prompts_file(nouns))
    return folder


@pytest.fixture(scope="module")
def one_pipeline() -> Iterator[None]:
    """Commands that open a pair in the same way share its sessions; it holds no state of a call."""
    from bootpig_rt import pipeline

    opened: dict[str, Any] = {}

    def once(*args: Any, **keywords: Any) -> Any:
        how = repr((args, keywords))
        if how not in opened:
            opened[how] = open_pair(*args, **keywords)
        return nullcontext(opened[how])

    open_pair = pipeline.Pipeline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Pipeline", once)
        yield
    for each in opened.values():
        each.close()


class MakeEncoder(Protocol):
    """`make_clip(folder)` and `make_dino(folder)`, see the fixtures."""

    def __call__(self, folder: Path, **config: Any) -> Path: ...


@pytest.fixture(scope="session")
def make_dino() -> MakeEncoder:
    """A function that writes a random ViT with the names of `facebook/dino-vits16`."""

    def make(folder: Path, **changes: Any) -> Path:
        config = {
            "model_type": "vit",
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": SIDE_PX,
            "patch_size": PATCH_PX,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "qkv_bias": True,
            **changes,
        }
        draw = _Draws(7)
        tensors = {
            "embeddings.cls_token": draw(1, 1, WIDTH),
            "embeddings.position_embeddings": draw(1, 1 + (SIDE_PX // PATCH_PX) ** 2, WIDTH),
            "embeddings.patch_embeddings.projection.weight": draw(WIDTH, 3, PATCH_PX, PATCH_PX),
            "embeddings.patch_embeddings.projection.bias": draw(WIDTH),
            **draw.norm("layernorm"),
            **draw.linear("pooler.dense", WIDTH, WIDTH),  # in the hub's file, and not used
        }
        for k in range(LAYERS):
            layer = f"encoder.layer.{k}"
            for name in ("query", "key", "value"):
                tensors |= draw.linear(f"{layer}.attention.attention.{name}", WIDTH, WIDTH)
            tensors |= draw.linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
            tensors |= draw.linear(f"{layer}.intermediate.dense", 24, WIDTH)
            tensors |= draw.linear(f"{layer}.output.dense", WIDTH, 24)
            tensors |= draw.norm(f"{layer}.layernorm_before")
            tensors |= draw.norm(f"{layer}.layernorm_after")
        return _write(folder, config, tensors)

    return make


@pytest.fixture(scope="session")
def make_clip(tiny_bundle_folder: Path) -> MakeEncoder:
    """A function that writes a random CLIP with the names of `openai/clip-vit-base-patch32`."""

    def make(folder: Path, **changes: Any) -> Path:
        shared = {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": 12,
        }
        text = {"vocab_size": 516, "max_position_embeddings": 77, "eos_token_id": 2}
        vision = {"image_size": SIDE_PX, "patch_size": PATCH_PX}
        config = {
            "model_type": "clip",
            "projection_dim": 12,
            "text_config": shared | text,
            "vision_config": shared | vision,
            **changes,
        }
        draw = _Draws(11)
        tensors = {
            "logit_scale": np.array(2.0, np.float32),
            "text_projection.weight": draw(12, WIDTH),
            "visual_projection.weight": draw(12, WIDTH),
            "text_model.embeddings.token_embedding.weight": draw(516, WIDTH),
            "text_model.embeddings.position_embedding.weight": draw(77, WIDTH),
            "text_model.embeddings.position_ids": np.arange(77)[None],
            "vision_model.embeddings.class_embedding": draw(WIDTH),
            "vision_model.embeddings.patch_embedding.weight": draw(WIDTH, 3, PATCH_PX, PATCH_PX),
            "vision_model.embeddings.position_embedding.weight": draw(17, WIDTH),
            "vision_model.embeddings.position_ids": np.arange(17)[None],
            **draw.norm("text_model.final_layer_norm"),
            **draw.norm("vision_model.pre_layrnorm"),
            **draw.norm("vision_model.post_layernorm"),
        }
        for side in ("text_model", "vision_model"):
            for k in range(LAYERS):
                layer = f"{side}.encoder.layers.{k}"
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    tensors |= draw.linear(f"{layer}.self_attn.{name}", WIDTH, WIDTH)
                tensors |= draw.linear(f"{layer}.mlp.fc1", 24, WIDTH)
                tensors |= draw.linear(f"{layer}.mlp.fc2", WIDTH, 24)
                tensors |= draw.norm(f"{layer}.layer_norm1") | draw.norm(f"{layer}.layer_norm2")
        _write(folder, config, tensors)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(tiny_bundle_folder / "tokenizer" / name, folder / name)
        told = json.loads((tiny_bundle_folder / "tokenizer" / "tokenizer_config.json").read_text())
        told["model_max_length"] = 77
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        return folder

    return make


@pytest.fixture
def clip_folder(make_clip: MakeEncoder, tmp_path: Path) -> Path:
    """A random CLIP."""
    return make_clip(tmp_path / "clip")


@pytest.fixture
def dino_folder(make_dino: MakeEncoder, tmp_path: Path) -> Path:
    """A random DINO."""
    return make_dino(tmp_path / "dino")


class _Draws:
    """Random tensors by shape, and the two of a layer by name."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray[Any, Any]:
        return self._rng.normal(0, 0.3, shape).astype(np.float32)

    def linear(self, name: str, rows: int, columns: int) -> dict[str, np.ndarray[Any, Any]]:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        return {f"{name}.weight": 1 + self(WIDTH), f"{name}.bias": self(WIDTH)}


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
