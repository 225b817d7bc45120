"""The two routes that draw, asked by OpenAI's own client and by hand."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

PROMPT = "a photo of a disc, on a beach"


@pytest.fixture
def client_of_openai(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def picture(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_the_client_of_openai_gets_a_picture_of_a_subject_from_its_reference_image(
    client_of_openai: openai.OpenAI, reference_png: bytes
) -> None:
    answer = client_of_openai.images.edit(
        image=("disc.png", reference_png),
        prompt=PROMPT,
        extra_body={"reference_prompt": "a photo of a disc", "seed": 7, "num_inference_steps": 3},
    )
    assert answer.data is not None
    assert picture(answer.data[0].b64_json or "").size == (32, 32)
    extra = answer.model_extra or {}
    assert extra["reference_passes"] > 0
    assert extra["subject_id"].startswith("sub_")


def test_a_second_picture_of_a_subject_runs_no_reference_pass(
    client_of_openai: openai.OpenAI, reference_png: bytes
) -> None:
    settings = {"reference_prompt": "a photo of a disc", "num_inference_steps": 3}
    first = client_of_openai.images.edit(
        image=("disc.png", reference_png), prompt=PROMPT, extra_body=settings
    )
    subject_id = (first.model_extra or {})["subject_id"]
    second = client_of_openai.images.generate(
        prompt="a photo of a disc, in the snow",
        n=2,
        extra_body={"subject_id": subject_id, "num_inference_steps": 3},
    )
    assert (second.model_extra or {})["reference_passes"] == 0
    assert len(second.data or []) == 2


def test_two_reference_images_go_in_as_a_list(
    client_of_openai: openai.OpenAI, reference_png: bytes
) -> None:
    answer = client_of_openai.images.edit(
        image=[("one.png", reference_png), ("two.png", reference_png)],
        prompt=PROMPT,
        extra_body={"reference_prompt": "a photo of a disc", "num_inference_steps": 2},
    )
    parameters = (answer.data or [])[0].model_extra or {}
    assert parameters["parameters"]["num_references"] == 2


def test_a_stream_has_partial_pictures_and_ends_in_the_one_that_is_not_streamed(
    client_of_openai: openai.OpenAI,
) -> None:
    settings: dict[str, Any] = {"seed": 5, "num_inference_steps": 6}
    plain = client_of_openai.images.generate(prompt=PROMPT, extra_body=settings)
    events = list(
        client_of_openai.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body=settings
        )
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert picture(events[0].b64_json).size == (32, 32)
    finished = picture(events[-1].b64_json)
    assert finished.tobytes() == picture((plain.data or [])[0].b64_json or "").tobytes()


def test_progress_is_told_where_it_is_asked_for(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "stream": True, "progress": True, "num_inference_steps": 4}
    events = events_of(client.post("/v1/images/generations", json=body))
    steps = [data for name, data in events if data.get("stage") == "steps"]
    assert [data["done"] for data in steps] == [1, 2, 3, 4]
    assert events[-1][0] == "image_generation.completed"


def test_a_json_body_brings_its_images_as_data_urls(
    client: httpx.Client, reference_png: bytes
) -> None:
    url = "data:image/png;base64," + base64.b64encode(reference_png).decode()
    body = {
        "prompt": PROMPT,
        "images": [{"image_url": url}],
        "reference_prompt": "a photo of a disc",
        "num_inference_steps": 2,
    }
    answer = client.post("/v1/images/edits", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["parameters"]["num_references"] == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "file:///etc/passwd", "data:text/plain;base64,AAAA", "x"]
)
def test_no_address_is_ever_fetched(client: httpx.Client, url: str) -> None:
    body = {"prompt": PROMPT, "images": [{"image_url": url}]}
    answer = client.post("/v1/images/edits", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "images.0.image_url"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_comes_in_the_format_that_is_asked_for(
    client: httpx.Client, output_format: str
) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 2, "output_format": output_format}
    answer = client.post("/v1/images/generations", json=body).json()
    assert picture(answer["data"][0]["b64_json"]).format == output_format.upper()


def test_who_accepts_pictures_gets_the_file_itself(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 2}
    answer = client.post("/v1/images/generations", json=body, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (32, 32)


def test_who_takes_json_as_gladly_gets_json_and_so_does_who_takes_another_picture(
    client: httpx.Client,
) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 2}
    for accept in ("application/json, image/*", "image/png;q=0.5, */*", "image/webp"):
        answer = client.post("/v1/images/generations", json=body, headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"n": 0}, 400, "n"),
        ({"n": 11}, 400, "n"),
        ({"n": "2"}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"n": 2.5}, 400, "n"),
        ({"size": "33x32"}, 400, "size"),
        ({"size": "0x0"}, 400, "size"),
        ({"num_inference_steps": 1001}, 400, "num_inference_steps"),
        ({"num_inference_steps": 201}, 400, "num_inference_steps"),
        ({"image_guidance_scale": 1e30}, 400, "image_guidance_scale"),
        ({"seed": -1}, 400, "seed"),
        ({"solver": "euler"}, 400, "solver"),
        ({"reference_schedule": "sometimes"}, 400, "reference_schedule"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"output_compression": 101}, 400, "output_compression"),
        ({"model": "another"}, 404, "model"),
        ({"subject_id": "sub_" + "0" * 24}, 404, "subject_id"),
        ({"deadline_s": 1e6}, 400, "deadline_s"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(
    client: httpx.Client, changes: dict[str, Any], status: int, param: str
) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 2} | changes
    answer = client.post("/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert set(error) == {"message", "type", "param", "code"}


def test_a_whole_number_is_one_however_it_is_written(
    client: httpx.Client, reference_png: bytes
) -> None:
    text = '{"prompt": "a disc, at sea", "n": 2.0, "seed": 7e0, "num_inference_steps": 1.0}'
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/images/generations", content=text, headers=headers)
    assert [one["seed"] for one in answer.json()["data"]] == [7, 8]
    form = {"prompt": PROMPT, "num_inference_steps": "1.0", "reference_prompt": "a disc"}
    answer = client.post("/v1/images/edits", data=form, files={"image": reference_png})
    assert answer.status_code == 200, answer.text
    for n in ("2.5", "1e400", "1.00000001"):
        body = f'{{"prompt": "a disc", "n": {n}}}'
        answer = client.post("/v1/images/generations", content=body, headers=headers)
        assert answer.json()["error"]["param"] == "n"


def test_a_field_that_is_missing_is_422(client: httpx.Client) -> None:
    answer = client.post("/v1/images/generations", json={})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "prompt"
