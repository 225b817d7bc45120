"""Flagged pictures do not leave, and neither do those that nobody could judge."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import BackendUnavailable, CheckpointError
from bootpig_rt.images.picture import is_marked_generated, load_image, read_parameters
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.safety import PLACEHOLDER_COLOUR, SafetyChecker, apply_safety

PROMPT = "a photo of a disc, on a beach"
BODY = {"prompt": PROMPT, "n": 4, "num_inference_steps": 2, "seed": 1}


def flag(*indices: int) -> SafetyChecker:
    """A checker that flags pictures by their place."""
    return lambda images: [index in indices for index in range(len(images))]


def fail(images: Sequence[Image.Image]) -> list[bool]:
    raise RuntimeError("SECRET")


def plain(image: Image.Image) -> bool:
    return bool((np.asarray(image) == PLACEHOLDER_COLOUR).all())


def test_a_flagged_picture_becomes_plain_grey_of_its_size() -> None:
    images = [Image.new("RGB", (20, 12), "red"), Image.new("RGB", (8, 30), "red")]
    kept, replaced = apply_safety(flag(1), images)
    assert kept.image is images[0]
    assert not kept.is_flagged
    assert replaced.is_flagged
    assert replaced.image.size == (8, 30)
    assert plain(replaced.image)


def test_without_a_checker_nothing_is_judged() -> None:
    [one] = apply_safety(None, [Image.new("RGB", (8, 8))])
    assert one.is_flagged is None


@pytest.mark.parametrize(
    "checker",
    [
        fail,
        lambda _: [],
        lambda images: [False] * (len(images) + 1),
        lambda images: [None] * len(images),
        lambda images: [0.1] * len(images),
    ],
)
def test_a_checker_that_does_not_judge_each_picture_lets_none_through(checker: Any) -> None:
    with pytest.raises(ApiError) as caught:
        apply_safety(checker, [Image.new("RGB", (8, 8))])
    assert (caught.value.status, caught.value.code) == (500, "safety_unavailable")
    assert "SECRET" not in caught.value.message


Ask = Callable[[SafetyChecker | None, dict[str, Any]], httpx.Response]


@pytest.fixture
def ask(ask_service: Callable[..., httpx.Response]) -> Ask:
    """A function that asks a service, with a checker, for pictures."""

    def ask(checker: SafetyChecker | None, body: dict[str, Any]) -> httpx.Response:
        return ask_service(Output(checker=checker), "POST", "/v1/images/generations", json=body)

    return ask


def test_of_four_pictures_the_flagged_one_is_replaced_and_the_others_are_returned(
    ask: Ask,
) -> None:
    unjudged, judged = (ask(checker, BODY).json()["data"] for checker in (None, flag(2)))
    assert [one["flagged"] for one in unjudged] == [None] * 4
    assert [one["flagged"] for one in judged] == [False, False, True, False]
    for index, (before, after) in enumerate(zip(unjudged, judged, strict=True)):
        assert (before["b64_json"] == after["b64_json"]) == (index != 2)
    file = base64.b64decode(judged[2]["b64_json"])
    assert plain(load_image(file))
    assert not is_marked_generated(file)
    assert b"photo of a disc" not in file
    assert read_parameters(base64.b64decode(judged[1]["b64_json"]))["prompt"] == PROMPT


def test_a_checker_that_fails_keeps_all_pictures_back(ask: Ask) -> None:
    answer = ask(fail, BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "safety_unavailable"
    assert "b64_json" not in answer.text
    assert "SECRET" not in answer.text
    assert ask(None, BODY).status_code == 200


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block for block in response.text.split("\n\n") if block.startswith("event")]
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    return [(name, json.loads(data)) for name, data in pairs]


def test_previews_are_judged_like_the_picture(ask: Ask) -> None:
    body = BODY | {"n": 1, "num_inference_steps": 4, "stream": True, "partial_images": 2}
    events = events_of(ask(flag(0), body))
    names = [name for name, _ in events]
    assert names[-1] == "image_generation.completed"
    assert names.count("image_generation.partial_image") >= 1
    for _, data in events:
        assert plain(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))
    assert events[-1][1]["flagged"] is True
    assert [name for name, _ in events_of(ask(fail, body))] == ["error"]


def test_a_service_does_not_begin_without_the_checker_that_it_should_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        Output.of(ServerOptions(safety_model=str(tmp_path / "none.onnx")))
    monkeypatch.setattr("bootpig_rt.server.nsfw._PACKAGES", ("no_such_package",))
    with pytest.raises(BackendUnavailable, match="no installed package has the file"):
        Output.of(ServerOptions(safety_model="open_nsfw"))
    assert Output.of(ServerOptions()) == Output()
