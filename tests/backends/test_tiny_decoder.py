"""The tiny decoder of a pair: as diffusers computes it, in every backend, and told of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from bootpig_rt.backends import PairOptions, create_backend
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.images.picture import to_pil
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.compiled import OPENVINO
from tests.one_backend import pipeline_over

LATENTS = np.random.default_rng(0).standard_normal((3, 4, 9, 7), dtype=np.float32)


OPTIONS: dict[str, Any] = {
    "torch": "torch",
    "onnxruntime": OnnxRuntimeOptions(intra_op_threads=1, spinning=False),
    "openvino": OPENVINO,
}


def folder_of(backend: str, pair: Path, bundle: Path) -> Path:
    return pair if backend == "torch" else bundle


@pytest.fixture(scope="module")
def drawer(pair_with_tiny_folder: Path) -> Pipeline:
    """The pair in torch; it decodes with the full decoder unless another pipeline says so."""
    return Pipeline(pair_with_tiny_folder, backend="torch", device="cpu")


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_it_decodes_scaled_latents_as_diffusers_does(
    backend: str, pair_with_tiny_folder: Path, bundle_with_tiny_folder: Path
) -> None:
    pytest.importorskip(backend)
    folder = folder_of(backend, pair_with_tiny_folder, bundle_with_tiny_folder)
    loaded = create_backend(OPTIONS[backend], folder, device="cpu")
    assert loaded.spec.decoders == ("full", "tiny")
    tiny: Any = AutoencoderTiny.from_pretrained(folder / "tiny_vae")
    with torch.inference_mode():
        plain = torch.from_numpy(LATENTS) / tiny.config.scaling_factor
        wanted = tiny.decode(plain).sample.numpy()
    made = loaded.decode(LATENTS, decoder="tiny")
    assert made.shape == (3, 3, 36, 28)
    np.testing.assert_allclose(made, wanted, atol=1e-4)
    assert np.abs(loaded.decode(LATENTS) - made).mean() > 0.01


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_pipeline_decodes_with_it_and_pictures_say_so(
    backend: str, pair_with_tiny_folder: Path, bundle_with_tiny_folder: Path, red: Image.Image
) -> None:
    folder = folder_of(backend, pair_with_tiny_folder, bundle_with_tiny_folder)
    pair = PairOptions(decoder="tiny")
    tiny = Pipeline(folder, backend=OPTIONS[backend], device="cpu", pair=pair)
    pictures = {}
    for decoder, pipe in (("tiny", tiny), ("full", pipeline_over(tiny, folder))):
        result = pipe("a photo of a dog", reference_images=red, seed=0)
        assert result.parameters[0].to_dict()["decoder"] == decoder
        pictures[decoder] = np.asarray(result.images[0])
    assert pictures["tiny"].shape == pictures["full"].shape
    assert (pictures["tiny"] != pictures["full"]).any()


def test_previews_are_what_it_makes_of_the_estimate(
    drawer: Pipeline, pair_with_tiny_folder: Path, red: Image.Image
) -> None:
    pipe = pipeline_over(drawer, pair_with_tiny_folder, pair=PairOptions(decoder="tiny"))
    subject = pipe.encode_subject(red, "a photo of a dog")
    seen: list[tuple[Image.Image, Image.Image]] = []

    def on_event(event: Any) -> None:
        if isinstance(event, StepEvent):
            assert event.previews is not None
            seen.append((event.previews[0], event.decode()[0]))

    request = Request(prompt="a photo of a dog", subject=subject, seed=0)
    job = pipe.engine.submit(request, on_event=on_event, preview_every=1)
    pipe.engine.drive([job])
    last = job.result().images[0]
    assert len(seen) == 2
    for preview, decoded in seen:
        assert preview.size == last.size
        np.testing.assert_array_equal(np.asarray(preview), np.asarray(decoded))


def test_a_pair_without_one_is_refused_with_what_to_do(tiny_bundle_folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"has no tiny_vae; put the folder of an Autoenc"):
        Pipeline(
            tiny_bundle_folder,
            backend="onnxruntime",
            device="cpu",
            pair=PairOptions(decoder="tiny"),
        )
    with pytest.raises(ParameterError, match="decoder is 'quick', expected"):
        PairOptions(decoder="quick")  # type: ignore[arg-type]


def test_it_is_part_of_a_pair_that_is_saved_and_of_its_fingerprint(
    pair_with_tiny_folder: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    pair = load_pair(pair_with_tiny_folder)
    saved = save_pair(pair, tmp_path / "saved", dtype=torch.float32)
    again = load_pair(saved)
    assert again.fingerprint == pair.fingerprint != pipeline.spec.fingerprint
    name = "tiny_vae/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(saved / name), load_file(pair_with_tiny_folder / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_class_name": "AutoencoderKL"}, "is of class 'AutoencoderKL', expected AutoencoderTiny"),
        ({"latent_channels": 6}, "has shape"),
        ({"decoder_block_out_channels": [8, 8]}, "does not describe a usable model"),
    ],
)
def test_another_kind_is_refused(
    pair_with_tiny_folder: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    folder = shutil.copytree(pair_with_tiny_folder, tmp_path / "pair")
    path = folder / "tiny_vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=expected):
        load_pair(folder)


def test_one_for_other_latents_is_refused(pair_with_tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pair_with_tiny_folder, tmp_path / "pair")
    other: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    other.save_pretrained(folder / "tiny_vae")
    with pytest.raises(CheckpointError, match="2 px a latent, expected 4 channels and 4 px"):
        load_pair(folder)


def test_pixels_of_both_become_pictures(drawer: Pipeline) -> None:
    large = 10 * LATENTS  # beyond [-1, 1]: clipped, as those of the autoencoder
    pictures = to_pil(drawer._backend.decode(large, decoder="tiny"))
    assert [picture.size for picture in pictures] == [(28, 36)] * 3
