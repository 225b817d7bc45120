"""Real layouts, small: the authors' checkpoints and init-pair, exported, run and built.

Random weights in the file layout, tensor names and configurations of `stable-diffusion-2-1-base`
and of Stable Diffusion 1.x.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bootpig_rt.backends.tensorrt.flavours import RTX
from bootpig_rt.bundle.bundle import Profile
from bootpig_rt.cli.main import main
from bootpig_rt.export.onnx_export import export_graph
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.text_encoders import states_shape

VERSIONS = ("2.1-base", "1.x")
GRAPHS = ("text_encoder", "text_kv", "vae_encoder", "reference_kv", "denoise_step", "vae_decoder")


@pytest.fixture(scope="module", params=VERSIONS)
def exported(
    request: pytest.FixtureRequest, make_sd_folder: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An untrained pair with its graphs in float32."""
    folder = tmp_path_factory.mktemp(request.param)
    init_pair(make_sd_folder(folder / "sd", request.param), folder / "pair")
    pair = load_pair(folder / "pair")
    for name in GRAPHS:
        export_graph(name, pair, folder / "pair", precision="float32")
    return folder / "pair"


def session(folder: Path, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
    )


def close(left: Any, right: Any) -> bool:
    """Equal but for the order of float32 sums."""
    left, right = np.asarray(left), np.asarray(right)
    return bool(np.linalg.norm(left - right) <= 1e-4 * np.linalg.norm(right))


@pytest.mark.slow
def test_the_graphs_compute_a_step_as_torch_does(exported: Path) -> None:
    import torch

    pair: Pair = load_pair(exported)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    length, _ = states_shape(pair.text_encoder)
    ids = rng.integers(0, 500, (2, length))
    (states,) = session(exported, "text_encoder").run(None, {"ids": ids})
    with torch.inference_mode():
        vae: Any = pair.vae
        texts = pair.text_encoder(torch.from_numpy(ids)).last_hidden_state
        assert close(states, texts)

        pixels = normal(1, 3, 64, 64)
        (latents,) = session(exported, "vae_encoder").run(None, {"pixels": pixels})
        mean = vae.encode(torch.from_numpy(pixels)).latent_dist.mean * vae.config.scaling_factor
        assert latents.shape == (1, 4, 8, 8)
        assert close(latents, mean)

        clean, t = normal(1, 4, 8, 8), np.array([500])
        table = session(exported, "reference_kv")
        names = [output.name for output in table.get_outputs()]
        values = {
            "latents": clean,
            "noise": np.zeros_like(clean),
            "alpha": np.ones(1, np.float32),
            "sigma": np.zeros(1, np.float32),
            "timesteps": t,
            "prompt_embeds": states[:1],
        }
        layers = dict(zip(names, table.run(None, values), strict=True))
        features = pair.reference(torch.from_numpy(clean), torch.from_numpy(t), texts[:1])
        reference_kv = pair.base.project_reference(features, ref_scale=pair.config.ref_scale)
        for index, (k, v) in enumerate(reference_kv):
            assert close(layers[f"k_{index}"], k)
            assert close(layers[f"v_{index}"], v)

        sample = normal(1, 4, 8, 8)
        rows = torch.tensor([[-1], [0], [0]])
        context = texts[[0, 0, 1]]
        three = torch.from_numpy(np.repeat(sample, 3, axis=0))
        output = pair.base(three, torch.tensor([500] * 3), context, reference_kv, rows)
        guided = output[0] + 4 * (output[1] - output[0]) + 6.5 * (output[2] - output[1])
        texts_of = session(exported, "text_kv")
        given = {"prompt_embeds": states, "text_of_row": np.array([0, 0, 1])}
        parts = [output.name for output in texts_of.get_outputs()]
        text_kv = dict(zip(parts, texts_of.run(None, given), strict=True))
        following, estimate, features = session(exported, "denoise_step").run(
            None,
            {
                "step": np.array([0]),
                "state": sample[None],
                "timesteps": np.array([[500]]),
                "matrices": np.array([[[[0.9, -0.2]]]], np.float32),
                "x0": np.array([[[1.1, -0.3]]], np.float32),
                "clip_weight": np.zeros((1, 1), np.float32),
                "clip_range": np.array([3e38], np.float32),
                "canvas": np.zeros((3, 1, 4, 8, 8), np.float32),
                "canvas_weights": np.zeros((1, 1, 2), np.float32),
                "mask": np.ones((1, 1, 8, 8), np.float32),
                "picture_of_row": np.array([0, 0, 0]),
                "rows_of_picture": np.array([[0], [1], [2]]),
                "image_guidance_scale": np.array([4], np.float32),
                "text_guidance_scale": np.array([6.5], np.float32),
                "ref_of_row": np.zeros((1, 2, 1), np.int64),
                "pair_of_row": np.array([0, 1, 1]),
                "picture_of_pair": np.array([0, 0]),
                "ref_of_pair": np.zeros((1, 1, 1), np.int64),
                **text_kv,
                **layers,
            },
        )
        assert close(following[0, 0], 0.9 * torch.from_numpy(sample[0]) - 0.2 * guided)
        assert close(estimate[0], 1.1 * torch.from_numpy(sample[0]) - 0.3 * guided)

        assert features.shape == (3, pair.base.deep_channels(), 8, 8)

        (drawn,) = session(exported, "vae_decoder").run(None, {"latents": following[0]})
        decoded = vae.decode(torch.from_numpy(following[0]) / vae.config.scaling_factor).sample
        assert drawn.shape == (1, 3, 64, 64)
        assert close(drawn, decoded)


@pytest.mark.slow
@pytest.mark.parametrize("version", [*VERSIONS, "xl"])
def test_checkpoints_of_the_authors_layout_become_a_bundle_that_draws(
    version: str, make_sd_folder: Any, tmp_path: Path
) -> None:
    from PIL import Image, ImageDraw

    from bootpig_rt.pipeline import Pipeline

    base_model = make_sd_folder(tmp_path / "sd", version)
    pair = tmp_path / "checkpoint"
    for name in ("base_unet", "ref_unet"):
        shutil.copytree(base_model / "unet", pair / name)
    words = ["build-engine", "--pair", str(pair), "--base-model", str(base_model), "--quiet"]
    words += ["--max-references", "1", "--resolution", "64", "--max-batch", "1"]
    assert main([*words, "-o", str(tmp_path / "bundle")]) == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["parity"]["status"] == "passed"
    disc = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(disc).ellipse((8, 8, 56, 56), fill="red")
    drawn = Pipeline(tmp_path / "bundle", device="cpu")(
        "a photo of a dog, on a beach",
        reference_images=disc,
        reference_prompt="a photo of a dog",
        num_inference_steps=1,
        seed=1,
    )
    assert drawn.images[0].size == (64, 64)


@pytest.mark.slow
@pytest.mark.skipif(not RTX.is_installed(), reason="tensorrt_rtx is not installed")
def test_every_attention_of_the_steps_is_one_kernel_with_wide_scores(
    make_sd_folder: Any, tmp_path: Path
) -> None:
    from bootpig_rt.export.tensorrt_builder import build_trt_engine

    init_pair(make_sd_folder(tmp_path / "sd", "2.1-base"), tmp_path / "pair")
    pair = load_pair(tmp_path / "pair")
    profile = Profile(resolution_px=(64, 64, 128), max_batch=2, max_references=3, max_steps=50)
    count = pair.base.num_layers
    steps = (("denoise_step", 3), ("denoise_step_argmax", 4), ("denoise_step_softmax", 4))
    for name, each_layer in steps:
        graph = export_graph(name, pair, tmp_path / "pair", precision="float16")
        engine = tmp_path / f"{name}.engine"
        layers = build_trt_engine(graph, engine, sm="sm_89", profile=profile).layers
        # Rows without references, those with, own tokens alone for the merge, and the text.
        assert (layers.fused_attentions, layers.unfused_attentions) == (each_layer * count, 0)
        assert set(layers.score_types) == {"fp32"}
        assert len(layers.float32_layers) == 1  # the solver, which computes in float32
