"""All numbers of a run against a second, plain implementation in numpy.

It reads the files of random encoders in the layouts of the hub by their published names, and writes
the protocol down once more, loop by loop.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from bootpig_rt.cli.main import main
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.evaluation.dreambench.data import load_dreambench
from bootpig_rt.training.evaluation.dreambench.encoders import ClipEncoder, DinoEncoder

Doubles = NDArray[np.float64]
Tensors = dict[str, Doubles]

HEADS = 2
erf = np.vectorize(math.erf)
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def tensors_of(folder: Path) -> Tensors:
    stored = load_file(folder / "model.safetensors")
    return {name: value.astype(np.float64) for name, value in stored.items()}


def linear(x: Doubles, t: Tensors, name: str) -> Doubles:
    return np.asarray(x @ t[f"{name}.weight"].T + t[f"{name}.bias"])


def norm(x: Doubles, t: Tensors, name: str, eps: float) -> Doubles:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return np.asarray(scaled * t[f"{name}.weight"] + t[f"{name}.bias"])


def attention(q: Doubles, k: Doubles, v: Doubles, *, is_causal: bool) -> Doubles:
    """Of one row: [S, width]."""
    parts = []
    for head in range(HEADS):
        size = q.shape[1] // HEADS
        part = slice(head * size, (head + 1) * size)
        weights = q[:, part] @ k[:, part].T / np.sqrt(size)
        if is_causal:
            weights = np.where(np.tri(len(q), dtype=bool), weights, -np.inf)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    return np.concatenate(parts, axis=1)


def patches(pixels: Doubles, weight: Doubles) -> Doubles:
    """Pixels [3, H, W] to [places, width]."""
    size = weight.shape[-1]
    rows = [
        np.tensordot(weight, pixels[:, y : y + size, x : x + size], 3)
        for y in range(0, pixels.shape[1], size)
        for x in range(0, pixels.shape[2], size)
    ]
    return np.stack(rows)


def pixels_of(image: Image.Image, resize: int, crop: int, mean: Any, std: Any) -> Doubles:
    wide = image.convert("RGB")
    scale = resize / min(wide.size)
    wide = wide.resize(
        (int(wide.width * scale), int(wide.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (wide.width - crop) // 2, (wide.height - crop) // 2
    middle = np.asarray(wide, np.float64)[top : top + crop, left : left + crop] / 255
    return np.asarray(((middle - mean) / std).transpose(2, 0, 1))


def clip_layers(x: Doubles, t: Tensors, side: str, *, is_causal: bool) -> Doubles:
    for k in range(2):
        layer = f"{side}.encoder.layers.{k}"
        y = norm(x, t, f"{layer}.layer_norm1", 1e-5)
        q, key, v = (linear(y, t, f"{layer}.self_attn.{n}_proj") for n in "qkv")
        y = attention(q, key, v, is_causal=is_causal)
        x = x + linear(y, t, f"{layer}.self_attn.out_proj")
        y = linear(norm(x, t, f"{layer}.layer_norm2", 1e-5), t, f"{layer}.mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), t, f"{layer}.mlp.fc2")
    return x


def clip_image(image: Image.Image, t: Tensors) -> Doubles:
    pixels = pixels_of(image, 32, 32, CLIP_MEAN, CLIP_STD)
    own = "vision_model.embeddings"
    x = np.concatenate(
        [
            t[f"{own}.class_embedding"][None],
            patches(pixels, t[f"{own}.patch_embedding.weight"]),
        ]
    )
    x = norm(x + t[f"{own}.position_embedding.weight"], t, "vision_model.pre_layrnorm", 1e-5)
    x = clip_layers(x, t, "vision_model", is_causal=False)
    x = norm(x[:1], t, "vision_model.post_layernorm", 1e-5)[0]
    return unit(t["visual_projection.weight"] @ x)


def clip_text(ids: list[int], eos: int, t: Tensors) -> Doubles:
    x = t["text_model.embeddings.token_embedding.weight"][ids]
    x = x + t["text_model.embeddings.position_embedding.weight"][: len(ids)]
    x = clip_layers(x, t, "text_model", is_causal=True)
    x = norm(x, t, "text_model.final_layer_norm", 1e-5)
    return unit(t["text_projection.weight"] @ x[ids.index(eos)])


def dino_image(image: Image.Image, t: Tensors, *, resize: int = 36) -> Doubles:
    pixels = pixels_of(image, resize, 32, MEAN, STD)
    own = "embeddings.patch_embeddings.projection"
    x = patches(pixels, t[f"{own}.weight"]) + t[f"{own}.bias"]
    x = np.concatenate([t["embeddings.cls_token"][0], x]) + t["embeddings.position_embeddings"][0]
    for k in range(2):
        layer = f"encoder.layer.{k}"
        y = norm(x, t, f"{layer}.layernorm_before", 1e-12)
        names = ("query", "key", "value")
        q, key, v = (linear(y, t, f"{layer}.attention.attention.{n}") for n in names)
        y = attention(q, key, v, is_causal=False)
        x = x + linear(y, t, f"{layer}.attention.output.dense")
        y = linear(norm(x, t, f"{layer}.layernorm_after", 1e-12), t, f"{layer}.intermediate.dense")
        x = x + linear(y * (1 + erf(y / np.sqrt(2))) / 2, t, f"{layer}.output.dense")
    return unit(norm(x[:1], t, "layernorm", 1e-12)[0])


def unit(x: Doubles) -> Doubles:
    return np.asarray(x / np.linalg.norm(x))


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((70, 90), Image.Resampling.BICUBIC)


def test_dino_is_the_class_token_of_the_published_names(dino_folder: Path) -> None:
    images = [picture(1), picture(2)]
    t = tensors_of(dino_folder)
    encoder = DinoEncoder(dino_folder)
    want = np.stack([dino_image(image, t) for image in images])
    np.testing.assert_allclose(encoder.images(images), want, atol=2e-5)
    whole = np.stack([dino_image(image, t, resize=32) for image in images])
    np.testing.assert_allclose(encoder.seen_as("whole").images(images), whole, atol=2e-5)
    assert np.abs(want - whole).max() > 1e-3


def test_clip_is_that_of_the_published_names(clip_folder: Path) -> None:
    images, prompts = [picture(1), picture(2)], ["a dog in the snow", "a red dog"]
    t = tensors_of(clip_folder)
    tokenizer = Tokenizer.from_folder(clip_folder)
    encoder = ClipEncoder(clip_folder)
    want = np.stack([clip_image(image, t) for image in images])
    np.testing.assert_allclose(encoder.images(images), want, atol=2e-5)
    texts = np.stack([clip_text(ids.tolist(), tokenizer.eos_id, t) for ids in tokenizer(prompts)])
    np.testing.assert_allclose(encoder.texts(prompts), texts, atol=2e-5)


def test_a_run_has_the_numbers_of_the_protocol(
    bench_folder: Path,
    clip_folder: Path,
    dino_folder: Path,
    tiny_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "-o", str(out)]
    words += ["--clip", str(clip_folder), "--dino", str(dino_folder), "--steps", "2"]
    words += ["--model", str(tiny_bundle_folder), "--prompts", "2", "--seeds", "2", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    bench = load_dreambench(bench_folder, num_prompts=2)
    clip, dino = tensors_of(clip_folder), tensors_of(dino_folder)
    tokenizer = Tokenizer.from_folder(clip_folder)
    means: dict[str, list[float]] = {"dino": [], "clip_i": [], "clip_t": []}
    for subject in bench.subjects:
        real = {
            "dino": [dino_image(Image.open(path), dino) for path in subject.photographs],
            "clip_i": [clip_image(Image.open(path), clip) for path in subject.photographs],
        }
        own: dict[str, list[float]] = {"dino": [], "clip_i": [], "clip_t": []}
        for number, prompt in enumerate(subject.prompts):
            [ids] = tokenizer([prompt.text]).tolist()
            text = clip_text(ids, tokenizer.eos_id, clip)
            for k in range(2):
                drawn = Image.open(out / "pictures" / subject.name / f"{number:02}-{k}.png")
                seen = {"dino": dino_image(drawn, dino), "clip_i": clip_image(drawn, clip)}
                for name, feature in seen.items():
                    cosines = [float(feature @ each) for each in real[name]]
                    own[name].append(sum(cosines) / len(cosines))
                own["clip_t"].append(float(seen["clip_i"] @ text))
        for name, values in own.items():
            mean = sum(values) / len(values)
            means[name].append(mean)
            assert report["subjects"][subject.name][name] == pytest.approx(mean, abs=1e-4)
    for name, values in means.items():
        assert report["scores"][name]["value"] == pytest.approx(sum(values) / 3, abs=1e-4)
    with (out / "subjects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == list(bench.names)
    assert float(rows[2]["clip_t"]) == pytest.approx(means["clip_t"][2], abs=1e-4)
    with (out / "pictures.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 2


def test_rows_of_photographs_are_those_of_plain_loops(
    bench_folder: Path, dino_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--oracle-only"]
    words += ["--dino", str(dino_folder), "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["photographs"]["dino"]
    tensors = tensors_of(dino_folder)
    of = {
        subject.name: [dino_image(Image.open(path), tensors) for path in subject.photographs]
        for subject in load_dreambench(bench_folder).subjects
    }

    def mean(own: str, others: list[str], counts: Callable[[int, int], bool]) -> float:
        return float(
            np.mean(
                [
                    float(a @ b)
                    for i, a in enumerate(of[own])
                    for other in others
                    for j, b in enumerate(of[other])
                    if counts(i, j)
                ]
            )
        )

    names = ["dog", "dog2", "vase"]
    real = [mean(name, [name], lambda i, j: i != j) for name in names]
    copy = [mean(name, [name], lambda i, j: True) for name in names]
    same = [mean("dog", ["dog2"], lambda i, j: True), mean("dog2", ["dog"], lambda i, j: True)]
    other = [mean(name, ["vase"], lambda i, j: True) for name in ("dog", "dog2")]
    other.append(mean("vase", ["dog", "dog2"], lambda i, j: True))
    assert found["real"] == pytest.approx(np.mean(real), abs=1e-4)
    assert found["copy"] == pytest.approx(np.mean(copy), abs=1e-4)
    assert found["same_class"] == pytest.approx(np.mean(same), abs=1e-4)
    assert found["other"] == pytest.approx(np.mean(other), abs=1e-4)
