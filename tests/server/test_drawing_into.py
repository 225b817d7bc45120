"""Edits that draw into a picture: the mask of OpenAI's API, and what is refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

PROMPT = "a photo of a disc, on a beach"
PIXELS = np.random.default_rng(2).integers(0, 256, (40, 32, 3), dtype=np.uint8)
DRAWN = np.zeros((40, 32), np.bool_)
DRAWN[8:30, 6:25] = True
STEPS = {"num_inference_steps": "4"}


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def mask_png(drawn: np.ndarray) -> bytes:
    """Transparent where it is drawn."""
    pixels = np.full((*drawn.shape, 4), 255, np.uint8)
    pixels[drawn] = 0
    return png(pixels)


def url(data: bytes) -> dict[str, str]:
    return {"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}


def pixels_of(file: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))


def test_the_client_of_openai_draws_a_subject_into_the_transparent_part_of_its_mask(
    server: Any, reference_png: bytes
) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.images.edit(
        image=[("scene.png", png(PIXELS)), ("disc.png", reference_png)],
        mask=("mask.png", mask_png(DRAWN)),
        prompt=PROMPT,
        extra_body={"reference_prompt": "a photo of a disc", "seed": 7, "mask_edge_px": 2},
    )
    assert answer.data is not None
    made = pixels_of(answer.data[0].b64_json or "")
    np.testing.assert_array_equal(made[~DRAWN], PIXELS[~DRAWN])
    assert (made[DRAWN] != PIXELS[DRAWN]).any()
    parameters = (answer.data[0].model_extra or {})["parameters"]
    assert (parameters["num_references"], parameters["mask_edge_px"]) == (1, 2)
    assert (parameters["width"], parameters["height"], parameters["strength"]) == (32, 40, 1.0)
    assert answer.to_dict()["size"] == "32x40"


def test_json_draws_a_kept_subject_into_a_picture_as_a_form_does(
    client: httpx.Client, reference_png: bytes
) -> None:
    settings = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4, "strength": 0.5}
    form = {name: str(value) for name, value in settings.items()}
    form["reference_prompt"] = "a photo of a disc"
    files = [("image", png(PIXELS)), ("image", reference_png), ("mask", mask_png(DRAWN))]
    first = client.post("/v1/images/edits", data=form, files=files)
    assert first.status_code == 200, first.text
    answer = first.json()
    body = settings | {
        "images": [url(png(PIXELS))],
        "mask": url(mask_png(DRAWN)),
        "subject_id": answer["subject_id"],
    }
    second = client.post("/v1/images/edits", json=body)
    assert second.status_code == 200, second.text
    assert second.json()["reference_passes"] == 0
    mine, theirs = (pixels_of(one["data"][0]["b64_json"]) for one in (answer, second.json()))
    np.testing.assert_array_equal(mine, theirs)


def test_strength_alone_draws_from_the_first_image(client: httpx.Client) -> None:
    fields = STEPS | {"prompt": PROMPT, "strength": "0.5"}
    answer = client.post("/v1/images/edits", data=fields, files={"image": png(PIXELS)}).json()
    parameters = answer["data"][0]["parameters"]
    assert (parameters["num_references"], parameters["strength"]) == (0, 0.5)
    assert parameters["mask_edge_px"] is None
    assert answer["subject_id"] is None


def test_a_stream_tells_the_size_of_the_picture_that_is_drawn_into(client: httpx.Client) -> None:
    fields = STEPS | {"prompt": PROMPT, "stream": "true", "partial_images": "1"}
    files = {"image": png(PIXELS), "mask": mask_png(DRAWN)}
    text = client.post("/v1/images/edits", data=fields, files=files).text
    assert "event: image_edit.completed" in text
    assert text.count('"size":"32x40"') + text.count('"size": "32x40"') == text.count('"size"')


@pytest.mark.parametrize(
    ("files", "fields", "told", "param"),
    [
        ({"mask": png(PIXELS)}, {}, "mask has no alpha channel, expected a PNG that is tr", "mask"),
        (
            {"mask": mask_png(DRAWN[:32])},
            {},
            "mask is 32x32 px, expected 32x40 px as the image; make both of one size",
            "mask",
        ),
        ({"mask": mask_png(DRAWN | True)}, {}, "mask is transparent all over, so nothing", "mask"),
        ({"mask": mask_png(DRAWN & False)}, {}, "mask is opaque all over, so nothing wou", "mask"),
        ({"mask": b"no picture"}, {}, "mask is not a picture, expected PNG, JPEG or WebP", "mask"),
        ({"mask": mask_png(DRAWN)}, {"size": "32x32"}, "image is 32x40 px, but 32x32 px a", "size"),
        (
            {},
            {"strength": "0.5", "mask_edge_px": "3"},
            "mask_edge_px is given without",
            "mask_edge",
        ),
        ({}, {"strength": "0.1"}, "strength is 0.1, of which no step of 4 is left", "strength"),
        ({}, {"strength": "0"}, "strength: Input should be greater than 0", "strength"),
    ],
)
def test_what_cannot_be_drawn_into_is_refused_with_its_field(
    client: httpx.Client,
    files: dict[str, bytes],
    fields: dict[str, str],
    told: str,
    param: str,
) -> None:
    values = STEPS | {"prompt": PROMPT} | fields
    answer = client.post("/v1/images/edits", data=values, files={"image": png(PIXELS)} | files)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert told in error["message"]
    assert error["param"].startswith(param)


def test_a_mask_needs_a_file_and_only_one(client: httpx.Client) -> None:
    fields = STEPS | {"prompt": PROMPT}
    twice = [("image", png(PIXELS)), ("mask", mask_png(DRAWN)), ("mask", mask_png(DRAWN))]
    for data, files, told in (
        (fields, twice, "mask is there twice"),
        (fields | {"mask": "text"}, [("image", png(PIXELS))], "mask is no field of this request"),
    ):
        error = client.post("/v1/images/edits", data=data, files=files).json()["error"]
        assert told in error["message"]
