"""A pair of U-Nets with nine input channels, as modules, as graphs and in the backends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import BatchCanvas, DenoiseBatch
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.errors import CheckpointError
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

RNG = np.random.default_rng(4)
PIXELS = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), np.bool_)
MASK[4:20, 8:30] = True
CANVAS = Canvas.load(PIXELS, MASK)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def requests_of(pipeline: Pipeline) -> list[Request]:
    subject = pipeline.encode_subject(Image.new("RGB", (40, 40), (220, 30, 30)), "a photo of a dog")
    fields: dict[str, Any] = {"prompt": "a dog, in snow", "subject": subject, "seed": 2}
    return [
        Request(**fields, num_inference_steps=3, canvas=CANVAS),
        Request(**fields, num_inference_steps=2),
        Request(**fields, num_inference_steps=4, canvas=Canvas.load(PIXELS), strength=0.5),
    ]


def test_a_step_reads_the_mask_and_the_picture_with_its_drawn_part_in_grey(
    inpainting_pair_folder: Path,
) -> None:
    backend: Any = create_backend("torch", inpainting_pair_folder, device="cpu")
    assert backend.spec.latent_channels == 4
    assert backend.spec.canvas == "read"
    text = backend.encode_text(np.arange(24, dtype=np.int64)[None])
    table = solver_table("ddim", backend.spec.noise_schedule, 4)
    planes, mask, state = normal(3, 1, 4, 8, 8), (normal(1, 1, 8, 8) > 0), normal(1, 1, 4, 8, 8)
    weights = np.tile(np.array([0.8, 0.6], np.float32), (4, 1, 1))
    batch = DenoiseBatch(
        state=state,
        prompt_embeds=text,
        text_of_row=np.zeros(1, np.int64),
        picture_of_row=np.zeros(1, np.int64),
        ref_of_row=np.full((1, 1), -1),
        rows_of_picture=np.zeros((3, 1), np.int64),
        image_guidance_scale=np.ones(1, np.float32),
        text_guidance_scale=np.ones(1, np.float32),
        tables=(),
        num_references=(),
        entry_of_step=np.zeros((0, 4), np.int64),
        solver=BatchSolver.of([table]),
        merge="argmax",
        canvas=BatchCanvas(planes, weights, mask.astype(np.float32)),
    )
    run = backend.start(batch)
    run.step(0)
    read = np.concatenate([state[0], mask, planes[2]], axis=1).astype(np.float32)
    with torch.inference_mode():
        output = backend.pair.base.unet(
            torch.from_numpy(read), int(table.timesteps[0]), text
        ).sample.numpy()
    drawn, _ = table.step(0, state[0], output=output, history=())
    given = 0.8 * planes[0] + 0.6 * planes[1]
    np.testing.assert_allclose(run.state()[0], np.where(mask, drawn, given), atol=1e-4)
    estimate = table.preview(0, state[0], output=output)
    np.testing.assert_allclose(run.estimate(), np.where(mask, estimate, planes[0]), atol=1e-3)


def test_its_reference_unet_reads_zeros_beside_the_latents(inpainting_pair_folder: Path) -> None:
    pair = load_pair(inpainting_pair_folder)
    latents, t, states = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 24, 16)
    with torch.inference_mode():
        features = pair.reference(latents, t, states)
        pair.reference.unet.conv_in.weight[:, 4:] = 0
        again = pair.reference(latents, t, states)
    for one, other in zip(features, again, strict=True):
        torch.testing.assert_close(one, other)


def test_it_draws_with_and_without_a_mask_side_by_side(inpainting_pair_folder: Path) -> None:
    pipeline = Pipeline(inpainting_pair_folder, backend="torch", device="cpu")
    requests = requests_of(pipeline)
    together = pipeline.generate(requests).images
    for request, image in zip(requests, together, strict=True):
        alone = pipeline.generate([request]).images[0]
        assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1
    np.testing.assert_array_equal(np.asarray(together[0])[~MASK], PIXELS[~MASK])


def test_init_pair_takes_it_from_a_base_model_for_inpainting(
    inpainting_pair_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(inpainting_pair_folder, tmp_path / "base")
    (base / "base_unet").rename(base / "unet")
    init_pair(base, tmp_path / "pair")
    pair = load_pair(tmp_path / "pair")
    assert pair.base.reads_canvas
    assert pair.base.latent_channels == 4


def test_a_unet_that_reads_neither_is_refused_with_what_would_do(
    inpainting_pair_folder: Path, patch_pair_folder: Path, tmp_path: Path
) -> None:
    """U-Nets of nine channels beside an autoencoder of six."""
    folder = shutil.copytree(patch_pair_folder, tmp_path / "pair")
    for name in ("base_unet", "ref_unet"):
        shutil.rmtree(folder / name)
        shutil.copytree(inpainting_pair_folder / name, folder / name)
    told = "base_unet reads 9 channels and gives 4, expected 6 of each, .* or 13 and 6 where it was"
    with pytest.raises(CheckpointError, match=told):
        load_pair(folder)


@pytest.mark.slow
def test_a_bundle_of_it_draws_as_torch_does(inpainting_pair_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(inpainting_pair_folder, tmp_path / "pair")
    config = load_pair(folder).config
    options = build_options(config, size_multiple_px=4, resolution="16:32", merges=("argmax",))
    build_engine(folder, tmp_path / "bundle", options)
    drawn = []
    for pipeline in (
        Pipeline(tmp_path / "bundle", backend="onnxruntime"),
        Pipeline(folder, backend="torch", device="cpu"),
    ):
        assert pipeline.spec.canvas == "read"
        assert pipeline.spec.latent_channels == 4
        made = pipeline.generate(requests_of(pipeline)).images
        drawn.append(np.stack([np.asarray(image, int) for image in made]))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
