"""Subjects of a loaded pair: encoded once, with or without their table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.errors import ImageError, ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request

PROMPT = "a photo of a dog, on a beach"


@pytest.mark.parametrize(("trained", "cold", "warm"), [("same", 2, 2), ("mixed", 1, 0)])
def test_encoding_a_subject_makes_the_table_that_serves_all_steps(
    make_tiny_pair: Any, tmp_path: Path, red: Image.Image, trained: str, cold: int, warm: int
) -> None:
    folder = make_tiny_pair(tmp_path, reference_timestep=trained)
    pipeline = Pipeline(folder, backend="torch", device="cpu")
    assert pipeline(PROMPT, reference_images=red).reference_passes == cold
    subject = pipeline.encode_subject(red, "a photo of another dog")
    assert pipeline(PROMPT, subject=subject).reference_passes == warm


def test_a_subject_is_frozen_down_to_its_arrays(dog: Subject) -> None:
    with pytest.raises(AttributeError):
        dog.noise_seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        dog.latents[0] = 0
    assert "1 reference images" in repr(dog)


def test_a_subject_shows_what_the_model_sees(dog: Subject) -> None:
    (image,) = dog.reference_images()
    assert image.size == (32, 32)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = image.getpixel((16, 16))  # type: ignore[misc]
    assert red > 200 > 60 > max(green, blue)


def test_a_table_encoded_ahead_is_found_by_its_tenant_alone(
    tiny_pair_folder: Path, red: Image.Image
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    steps = pipeline.spec.config.default_steps
    subject = pipeline.encode_subject(
        red, "a photo of a dog", num_inference_steps=steps, tenant="a"
    )
    assert pipeline(PROMPT, subject=subject, tenant="a").reference_passes == 0
    requests = [Request(prompt=PROMPT, subject=subject, seed=n, tenant="a") for n in range(2)]
    assert pipeline.generate(requests).reference_passes == 0
    assert [result.reference_passes for result in pipeline.map(requests)] == [0, 0]
    for tenant in ("", "b"):
        assert pipeline(PROMPT, subject=subject, tenant=tenant).reference_passes > 0
    wrong: Any = 1
    with pytest.raises(ParameterError, match="tenant is of type int, expected text"):
        pipeline(PROMPT, subject=subject, tenant=wrong)
    with pytest.raises(ParameterError, match="tenant is of type int, expected text"):
        pipeline.encode_subject(red, "a dog", tenant=wrong)


def test_a_different_prompt_or_noise_seed_is_a_different_subject(
    pipeline: Pipeline, red: Image.Image
) -> None:
    subjects = [
        pipeline.encode_subject(red, "a photo of a dog"),
        pipeline.encode_subject(red, "a photo of a cat"),
        pipeline.encode_subject(red, "a photo of a dog", noise_seed=1),
        pipeline.encode_subject([red, red], "a photo of a dog"),
    ]
    assert len({subject.fingerprint for subject in subjects}) == 4


def test_too_many_references_are_refused(pipeline: Pipeline, red: Image.Image) -> None:
    with pytest.raises(ParameterError, match=r"5 reference images, expected 1\.\.4"):
        pipeline(PROMPT, reference_images=[red] * 5)


def test_the_most_pixels_of_a_reference_image_are_a_setting(
    pipeline: Pipeline, red: Image.Image
) -> None:
    width, height = red.size
    pipeline.encode_subject(red, "a dog", max_image_pixels=width * height)
    with pytest.raises(ImageError, match=f"is {width}x{height} px, expected .* megapixels"):
        pipeline.encode_subject(red, "a dog", max_image_pixels=width * height - 1)
    with pytest.raises(ParameterError, match="max_image_pixels is 0, expected 64"):
        pipeline.encode_subject(red, "a dog", max_image_pixels=0)
