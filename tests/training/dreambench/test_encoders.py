"""What an encoder's folder may be, and what is said of one that is not the protocol's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bootpig_rt.errors import CheckpointError
from bootpig_rt.training.evaluation.dreambench.encoders import (
    ClipEncoder,
    DinoEncoder,
    View,
    is_clip_b32,
    is_vit_s16,
)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (40, 40), (level, level, level // 2))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folders_that_transformers_saved_itself_give_the_same(
    clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    from transformers import CLIPModel, ViTModel

    for kind, folder in ((CLIPModel, clip_folder), (ViTModel, dino_folder)):
        model = kind.from_pretrained(folder, local_files_only=True)
        model.save_pretrained(tmp_path / f"again-{folder.name}")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(clip_folder / file, tmp_path / "again-clip")
    images = [grey(10), grey(200)]
    for kind, folder in ((ClipEncoder, clip_folder), (DinoEncoder, dino_folder)):
        again = tmp_path / f"again-{folder.name}"
        np.testing.assert_allclose(
            kind(folder).images(images), kind(again).images(images), atol=1e-6
        )


def test_features_have_length_one_and_do_not_depend_on_the_batch(dino_folder: Path) -> None:
    encoder = DinoEncoder(dino_folder)
    images = [grey(level) for level in range(0, 240, 6)]
    together = encoder.images(images)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encoder.images(images[37:38])[0], together[37], atol=1e-6)


def test_a_view_is_what_transformers_makes_of_a_picture() -> None:
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 131, 3), dtype=np.uint8))
    theirs = processing.CLIPImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ours = View(224, 224, mean, std)([image]).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_dino_sees_the_middle_of_256_px(dino_folder: Path) -> None:
    view = View(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = Image.new("RGB", (512, 512), "black")
    image.paste("white", (26, 26, 486, 486))  # 16 px of 256 are cut off on each side
    assert view([image]).min() > 0.9
    assert DinoEncoder(dino_folder).about.fingerprint != (
        DinoEncoder(dino_folder, view="whole").about.fingerprint
    )


def test_another_architecture_is_not_of_the_protocol(clip_folder: Path, dino_folder: Path) -> None:
    clip, dino = ClipEncoder(clip_folder), DinoEncoder(dino_folder)
    assert not clip.about.is_of_protocol
    assert not dino.about.is_of_protocol
    assert "16 wide, 2 deep, /8" in dino.about.text


def test_the_protocol_has_clip_b32_and_dino_s16() -> None:
    from transformers import CLIPConfig, ViTConfig

    assert is_clip_b32(CLIPConfig())  # whose defaults are openai/clip-vit-base-patch32
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
    large["num_attention_heads"] = 16
    assert not is_clip_b32(CLIPConfig(vision_config=large, projection_dim=768))
    assert not is_clip_b32(CLIPConfig(vision_config={"patch_size": 16}))
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    assert is_vit_s16(ViTConfig(**small))
    assert not is_vit_s16(ViTConfig(**small, patch_size=8))
    assert not is_vit_s16(ViTConfig())


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def leave_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if not name.endswith("layernorm.bias")},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def put_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.cls_token"][:] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist, expected a folder as the hub has for facebook/dino"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid json"),
        (lambda folder: edit(folder, model_type="dinov2"), "is of a 'dinov2', expected 'vit'"),
        (lambda folder: edit(folder, hidden_size=20), "does not belong|not hold|do not belong"),
        (drop_weights, "model.safetensors is missing"),
        (leave_a_pickle, "pytorch_model.bin, a pickle, .* convert it to safetensors"),
        (cut_short, "truncated or damaged"),
        (drop_a_tensor, "tensor 'layernorm.bias' is missing"),
        (put_nan, "holds NaN"),
    ],
)
def test_a_dino_folder_that_cannot_be_used_says_why(
    dino_folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(dino_folder)
    with pytest.raises(CheckpointError, match=message):
        DinoEncoder(dino_folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json"),
        (lambda folder: edit(folder, model_type="siglip"), "is of a 'siglip', expected 'clip'"),
        (leave_a_pickle, "a pickle"),
    ],
)
def test_a_clip_folder_that_cannot_be_used_says_why(
    clip_folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(clip_folder)
    with pytest.raises(CheckpointError, match=message):
        ClipEncoder(clip_folder)
