"""A pair of Stable Diffusion XL through the pipeline: pictures, sizes, batches, few steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPTokenizer

from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.errors import ParameterError
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request

DISC = Image.new("RGB", (40, 40), (220, 30, 30))


@pytest.fixture(scope="module")
def pipeline(xl_pair_folder: Path) -> Pipeline:
    return Pipeline(xl_pair_folder, backend="torch", device="cpu")


def pixels(pipeline: Pipeline, *requests: Request) -> list[np.ndarray]:
    return [np.asarray(image, int) for image in pipeline.generate(list(requests)).images]


# Of diffusers' Euler scheduler with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_without_a_subject_it_draws_what_diffusers_draws(
    spacing: str, xl_pair_folder: Path, tmp_path: Path
) -> None:
    """Euler's steps of diffusers are those of DDIM here, with guidance and an empty prompt."""
    folder = shutil.copytree(xl_pair_folder, tmp_path / "pair")
    path = folder / "scheduler" / "scheduler_config.json"
    euler = {**json.loads(path.read_text()), "_class_name": "EulerDiscreteScheduler"}
    euler |= {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False}
    path.write_text(json.dumps(euler))
    pair = load_pair(folder)
    text: Any = pair.text_encoder
    theirs: Any = StableDiffusionXLPipeline(
        vae=pair.vae,
        text_encoder=text.first,
        text_encoder_2=text.second,
        tokenizer=CLIPTokenizer.from_pretrained(pair.tokenizer_folder),
        tokenizer_2=CLIPTokenizer.from_pretrained(pair.tokenizer_2_folder),
        unet=pair.base.unet,
        scheduler=EulerDiscreteScheduler.from_config(euler),
        add_watermarker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(picture_noise(3, (4, 8, 8)))[None]
    # With trailing timesteps noise is 0.9977 of a unit there, and 1 here.
    theirs.scheduler.set_timesteps(4)
    noise = noise * (theirs.scheduler.sigmas[0] ** 2 + 1) ** 0.5 / theirs.scheduler.init_noise_sigma
    drawn = theirs(
        "a dog, on a beach",
        num_inference_steps=4,
        guidance_scale=5.0,
        width=32,
        height=32,
        original_size=(48, 40),
        crops_coords_top_left=(3, 5),
        target_size=(32, 32),
        latents=noise,
        output_type="np",
    ).images[0]
    request = Request(
        prompt="a dog, on a beach",
        seed=3,
        num_inference_steps=4,
        solver="ddim",
        image_guidance_scale=5.0,
        text_guidance_scale=5.0,
        sizes=(48, 40, 3, 5, 32, 32),
    )
    (mine,) = pixels(Pipeline(folder, backend="torch", device="cpu"), request)
    assert np.abs(mine - 255 * drawn).max() <= 1


def some_requests(pipeline: Pipeline) -> list[Request]:
    subject = pipeline.encode_subject(DISC, "a photo of a dog")
    fields: dict[str, Any] = {"subject": subject, "seed": 2}
    return [
        Request(prompt="a dog, in snow", num_inference_steps=3, **fields),
        Request(
            prompt="a dog, at sea", num_inference_steps=2, sizes=(8, 8, 1, 2, 32, 32), **fields
        ),
        Request(prompt="a dog, at sea", negative_prompt="rain", num_inference_steps=2, seed=5),
    ]


def test_pictures_of_a_batch_have_each_their_prompt_and_sizes(pipeline: Pipeline) -> None:
    requests = some_requests(pipeline)
    together = pixels(pipeline, *requests)
    for request, image in zip(requests, together, strict=True):
        assert np.abs(pixels(pipeline, request)[0] - image).max() <= 1
    other = pixels(pipeline, replace(requests[1], sizes=None))[0]
    assert np.abs(other - together[1]).max() > 0


def test_what_is_told_stands_in_the_parameters(pipeline: Pipeline) -> None:
    told = pipeline.generate(some_requests(pipeline)[:2]).parameters
    assert told[0].sizes == (32, 32, 0, 0, 32, 32)
    assert told[1].to_dict()["sizes"] == [8, 8, 1, 2, 32, 32]


def test_a_pair_that_is_told_no_sizes_refuses_them(tiny_pair_folder: Path) -> None:
    plain = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    with pytest.raises(ParameterError, match="sizes is given, but this pair is told no sizes"):
        plain.generate([Request(prompt="a dog", sizes=(1, 1, 0, 0, 1, 1))])


@pytest.mark.parametrize("sizes", [(1, 2, 3), (1, 1, 0, 0, 1, -1), (1, 1, 0, 0, 1, 1.5), "111111"])
def test_sizes_that_are_none_are_refused(sizes: Any) -> None:
    with pytest.raises(ParameterError, match="expected six whole numbers"):
        Request(prompt="a dog", sizes=sizes)


def test_a_subject_travels_with_what_its_reference_was_told(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    subject = pipeline.encode_subject(DISC, "a photo of a dog")
    assert subject.prompt_states is not None
    assert subject.prompt_states.shape == pipeline.spec.text_shape == (24 + 2, 40)
    subject.save(tmp_path / "dog.subject")
    again = Subject.load(tmp_path / "dog.subject")
    one, other = (
        pixels(pipeline, Request(prompt="a dog, in snow", subject=each, seed=1))[0]
        for each in (subject, again)
    )
    np.testing.assert_array_equal(one, other)


def test_a_table_that_does_not_fit_is_refused_with_what_would(xl_pair_folder: Path) -> None:
    tables = TableOptions(budget_bytes=1000)
    small = Pipeline(xl_pair_folder, backend="torch", device="cpu", tables=tables)
    with pytest.raises(ParameterError, match="of device memory a step, the budget for tables is"):
        small.encode_subject(DISC, "a photo of a dog")
    plain = small.generate([Request(prompt="a dog", seed=1)])  # nothing is lost
    assert len(plain.images) == 1


def test_steps_that_leave_out_deep_blocks_draw_it_too(pipeline: Pipeline) -> None:
    subject = pipeline.encode_subject(DISC, "a photo of a dog")
    request = Request(
        prompt="a dog, in snow",
        subject=subject,
        seed=1,
        num_inference_steps=4,
        approximation="cache:2",
    )
    (cheap,), (full,) = (
        pixels(pipeline, one) for one in (request, replace(request, approximation="none"))
    )
    assert np.abs(cheap - full).max() > 0


def test_a_base_of_few_steps_draws_in_them_without_guidance(
    xl_pair_folder: Path, tmp_path: Path
) -> None:
    """One step, by hand: the reference read at its noise level, one row, x0 decoded."""
    folder = shutil.copytree(xl_pair_folder, tmp_path / "pair")
    path = folder / "pair.json"
    values = {**json.loads(path.read_text()), "default_steps": 1, "default_solver": "ddim"}
    values |= {"image_guidance_scale": 1.0, "text_guidance_scale": 1.0}
    path.write_text(json.dumps(values))
    few = Pipeline(folder, backend="torch", device="cpu")
    subject = few.encode_subject(DISC, "a photo of a dog")
    result = few("a dog, in snow", subject=subject, seed=0)
    assert result.parameters[0].num_inference_steps == 1

    pair, schedule = load_pair(folder), few.spec.noise_schedule
    (t,) = schedule.timesteps(1)
    assert t == 999  # trailing
    noised = reference_latents(
        subject.latents,
        ReferenceSchedule.parse("exact"),
        np.array([t]),
        noise_seed=subject.noise_seed,
        noise_schedule=schedule,
    )[0]
    noise = torch.from_numpy(picture_noise(0, (4, 8, 8)))[None]
    with torch.inference_mode():
        text: Any = pair.text_encoder
        told, said = (
            text(torch.from_numpy(pair.tokenizer()([prompt])))[0]
            for prompt in ("a photo of a dog", "a dog, in snow")
        )
        at = torch.tensor([t])
        features = pair.reference(torch.from_numpy(noised), at, told)
        table = pair.base.project_reference(features, ref_scale=pair.config.ref_scale)
        output = pair.base(noise, at, said, table, torch.tensor([[0]]))
        bar = float(schedule.alphas_cumprod[t])
        x0 = (noise - (1 - bar) ** 0.5 * output) / bar**0.5
        vae: Any = pair.vae
        drawn = vae.decode(x0 / vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    expected = np.round(255 * (drawn.clamp(-1, 1).numpy() + 1) / 2)
    assert np.abs(np.asarray(result.images[0], int) - expected).max() <= 1
