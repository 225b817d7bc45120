"""A pair with an autoencoder of patches, as graphs and in the backends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.export.graphs import build_graph
from bootpig_rt.export.onnx_export import export_graph
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.pipeline import Pipeline

DRAWN: dict[str, Any] = {"prompt": "a dog on a beach", "num_inference_steps": 2, "seed": 3}


@pytest.fixture
def folder(patch_pair_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(patch_pair_folder, tmp_path / "pair"))


def test_its_graphs_scale_each_channel(patch_pair_folder: Path) -> None:
    pair: Pair = load_pair(patch_pair_folder)
    vae: Any = pair.vae
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = build_graph("vae_encoder", pair).module(pixels)
        back = build_graph("vae_decoder", pair).module(latents)
        plain = vae.encode(pixels).latents
        decoded = vae.decode(plain).sample
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(latents, (plain - mean) / std * vae.config.scaling_factor)
    torch.testing.assert_close(back, decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "cpu"])
def test_onnx_runtime_computes_its_graphs(folder: Path, dialect: Any) -> None:
    pair = load_pair(folder)
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in (("vae_encoder", (2, 3, 40, 24)), ("vae_decoder", (2, 6, 10, 6))):
        path = export_graph(name, pair, folder, precision="float32", dialect=dialect)
        given = rng.uniform(-1, 1, shape).astype(np.float32)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (made[name],) = session.run(None, {session.get_inputs()[0].name: given})
        with torch.inference_mode():
            expected = build_graph(name, pair).module(torch.from_numpy(given))
        np.testing.assert_allclose(made[name], expected, rtol=1e-4, atol=1e-4)
    assert made["vae_encoder"].shape == (2, 6, 10, 6)


def test_the_torch_backend_draws_with_it_and_shows_previews(patch_pair_folder: Path) -> None:
    pipeline = Pipeline(patch_pair_folder, backend=TorchOptions(), device="cpu")
    assert pipeline.spec.latent_channels == 6
    assert pipeline.spec.vae_scale_factor == 4
    red = Image.new("RGB", (40, 40), (220, 30, 30))
    (image,) = pipeline(reference_images=red, **DRAWN).images
    assert image.size == (32, 32)


def test_init_pair_takes_it_from_a_base_model(patch_pair_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(patch_pair_folder, base)
    (base / "base_unet").rename(base / "unet")
    config = init_pair(base, tmp_path / "pair")
    assert config.sample_size_px == 32
    pair: Any = load_pair(tmp_path / "pair")
    assert type(pair.vae).__name__ == "PatchAutoencoder"
    assert len(pair.vae.config.latents_std) == 6


@pytest.mark.slow
def test_a_bundle_of_it_draws_as_torch_does(folder: Path, tmp_path: Path) -> None:
    config = load_pair(folder).config
    options = build_options(config, size_multiple_px=4, resolution="16:32", merges=("argmax",))
    build_engine(folder, tmp_path / "bundle", options)
    red = Image.new("RGB", (40, 40), (220, 30, 30))
    drawn = [
        np.asarray(pipeline(reference_images=red, **DRAWN).images[0], np.int16)
        for pipeline in (
            Pipeline(tmp_path / "bundle"),
            Pipeline(folder, backend=TorchOptions(), device="cpu"),
        )
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
