"""Maps of the images API: in JSON and in a form, on both routes, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.local import load_local
from bootpig_rt.server.options import ServerOptions

PROMPT = "a photo of a disc, on a beach"


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def control(kind: str = "depth", *, pixels: np.ndarray | None = None, **more: Any) -> Any:
    grey = np.random.default_rng(1).integers(0, 256, (40, 32), dtype=np.uint8)
    data = base64.b64encode(png(grey if pixels is None else pixels)).decode()
    return {"kind": kind, "image_url": f"data:image/png;base64,{data}", **more}


def pixels_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    file = answer.json()["data"][0]["b64_json"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))


@pytest.fixture(scope="module")
def followed(followed_server: Any) -> Iterator[httpx.Client]:
    """A client of a server whose model has controls."""
    with followed_server.client() as client:
        yield client


def test_a_model_says_which_maps_it_follows(followed: httpx.Client, client: httpx.Client) -> None:
    assert followed.get("/v1/models").json()["data"][0]["controls"] == ["depth", "outline"]
    assert client.get("/v1/models").json()["data"][0]["controls"] == []


def test_controls_that_the_options_name_belong_to_the_default_model(
    tiny_pair_folder: Path, tiny_bundle_folder: Path, controlled_pair_folder: Path
) -> None:
    options = ServerOptions(
        model=str(tiny_pair_folder),
        models={"other": str(tiny_bundle_folder)},
        control=(f"near={controlled_pair_folder / 'controlnet_depth'}",),
    )
    for served, folder, kinds in (
        (tiny_pair_folder.name, tiny_pair_folder, ["near"]),
        ("other", tiny_bundle_folder, []),
    ):
        model = load_local(served, folder, options)
        try:
            assert [one.kind for one in model.pipeline.spec.controls] == kinds
        finally:
            model.pipeline.close()
    name = tiny_pair_folder.name
    options = ServerOptions(model=str(tiny_pair_folder), control=("nowhere",))
    with pytest.raises(ParameterError, match="control is 'nowhere', expected KIND=DIR"):
        load_local(name, tiny_pair_folder, options)


def test_a_prompt_follows_maps_and_says_so(followed: httpx.Client) -> None:
    body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3}
    plain = pixels_of(followed.post("/v1/images/generations", json=body | {"size": "32x40"}))
    maps = [control(), control("outline", scale=0.5, interval=[0.0, 0.5])]
    answer = followed.post("/v1/images/generations", json=body | {"controls": maps})
    drawn = pixels_of(answer)
    assert drawn.shape == plain.shape == (40, 32, 3)
    assert (drawn != plain).any()
    said = answer.json()["data"][0]["parameters"]["controls"]
    assert [(one["kind"], one["scale"], one["interval"]) for one in said] == [
        ("depth", 1.0, [0.0, 1.0]),
        ("outline", 0.5, [0.0, 0.5]),
    ]
    assert answer.json()["size"] == "32x40"


def test_a_form_follows_maps_as_json_does(followed: httpx.Client, reference_png: bytes) -> None:
    fields = {"prompt": PROMPT, "seed": "3", "num_inference_steps": "3"}
    fields |= {"reference_prompt": "a photo of a disc", "controls": json.dumps([control()])}
    form = followed.post("/v1/images/edits", data=fields, files={"image": reference_png})
    first = pixels_of(form)
    body = {
        "prompt": PROMPT,
        "seed": 3,
        "num_inference_steps": 3,
        "subject_id": form.json()["subject_id"],
        "controls": [control()],
    }
    second = pixels_of(followed.post("/v1/images/generations", json=body))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("maps", "status", "told", "param"),
    [
        ([control("pose")], 400, "it has depth, outline", "controls"),
        ([control(), control()], 400, "one of each kind", "controls"),
        ([control(scale=11)], 400, "less than or equal to 10", "controls.0.scale"),
        ([control(source="photo")], 400, "not made here", "controls.0.source"),
        ([{"kind": "depth"}], 422, "image_url is missing", "controls.0.image_url"),
        ([control() | {"image_url": "http://x/y.png"}], 400, "not fetched", None),
        (
            [control(pixels=np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8))],
            400,
            "is in colour, expected a grey depth map",
            "controls",
        ),
        ([control(), control("outline", pixels=np.zeros((32, 32), np.uint8))], 400, "px", None),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused(
    followed: httpx.Client, maps: list[Any], status: int, told: str, param: str | None
) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 2, "controls": maps}
    answer = followed.post("/v1/images/generations", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert told in error["message"]
    if param is not None:
        assert error["param"] == param
