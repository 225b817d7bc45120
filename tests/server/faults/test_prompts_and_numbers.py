"""Texts and numbers of a picture that cannot be, and some that look so and can."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

DRAW = "/v1/images/generations"
SHORT: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 1}
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def draw(client: httpx.Client) -> Callable[..., httpx.Response]:
    def ask(**changes: Any) -> httpx.Response:
        return client.post(DRAW, content=json.dumps(SHORT | changes).encode(), headers=JSON)

    return ask


JSON = {"content-type": "application/json"}


def test_a_prompt_and_an_image_that_are_missing_are_named(
    client: httpx.Client, check_refusal: Check
) -> None:
    check_refusal(client.post(DRAW, json={}), 422, "missing_field", "prompt")
    body = {"prompt": "a dog"}
    check_refusal(client.post("/v1/images/edits", json=body), 422, "missing_field", "images")
    form = {"data": body, "files": {"other": b""}}
    check_refusal(client.post("/v1/images/edits", **form), 400, "unknown_field", "other")  # type: ignore[arg-type]
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    text = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na dog\r\n--b--\r\n'
    answer = client.post("/v1/images/edits", content=text, headers=boundary)
    check_refusal(answer, 422, "missing_field", "image")
    answer = client.post(
        "/v1/subjects", content=text.replace(b"prompt", b"model"), headers=boundary
    )
    check_refusal(answer, 422, "missing_field", "reference_prompt")


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "is_fine"),
    [
        pytest.param("", None, id="empty"),
        pytest.param(" \n\t\u00a0\u3000", None, id="white space"),
        pytest.param("dog " * 40, True, id="longer than the model reads"),
        pytest.param("a" * 10_000, True, id="10,000 characters"),
        pytest.param("a" * 32_000, False, id="32,000 characters"),
        pytest.param("a\0dog", False, id="NUL"),
        pytest.param("a \ud800 dog", False, id="lone surrogate"),
        pytest.param("\udfff\ud800", False, id="surrogates the wrong way round"),
        pytest.param("\u202eكلب على الشاطئ", True, id="right to left"),
        pytest.param("🐶👩‍👩‍👧" * 20, True, id="emoji"),
        pytest.param("\x1b[31ma\r\ndog\ufeff\uffff", True, id="control characters"),
    ],
)
def test_any_prompt_is_drawn_or_refused_by_its_name(
    draw: Callable[..., httpx.Response],
    check_refusal: Check,
    name: str,
    text: str,
    is_fine: bool | None,
) -> None:
    answer = draw(**{name: text})
    if is_fine is None:
        is_fine = name == "negative_prompt"  # nothing to stay away from
    if not is_fine:
        check_refusal(answer, 400, param=name)
        return
    assert answer.status_code == 200, answer.text
    warnings = answer.json()["warnings"]
    assert all("the model reads 24; its end is ignored" in one for one in warnings)
    assert len(warnings) == 1 or len(text) < 100
    assert answer.json()["data"][0]["parameters"][name].strip() == text.strip()


@pytest.mark.parametrize("value", [0, -1, 11, 65, 10**9, "2", True, 2.5, 1e400, None, [], {}])
def test_a_number_of_pictures_that_cannot_be_is_refused_and_never_bent(
    draw: Callable[..., httpx.Response], check_refusal: Check, value: object
) -> None:
    answer = draw(n=value)
    if value == 1e400:  # JSON writes it as Infinity, which is none
        check_refusal(answer, 400, "invalid_json")
    else:
        check_refusal(answer, 400, "invalid_value", "n")


@pytest.mark.parametrize(
    "value",
    [
        "1024x",
        "0x0",
        "-8x512",
        "513x512",
        "99999x99999",
        "\uff13\uff12x32",
        "\u0663\u0662x\u0663\u0662",
        "32X32",
        "32x32\n",
        32,
    ],
)
def test_a_size_that_cannot_be_is_refused_with_what_may_be(
    draw: Callable[..., httpx.Response], check_refusal: Check, value: object
) -> None:
    message = check_refusal(draw(size=value), 400, "invalid_value", "size")["message"]
    assert "expected" in message or "valid string" in message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_inference_steps", [0, -5, 201, 1001, 2**70, True, "2", 1.5]),
        ("image_guidance_scale", [-1, 1e30, 10**400, "1", True]),
        ("text_guidance_scale", [-0.1, 100.5, "much"]),
        ("seed", [-1, 2**63, 2**64, 1.5, "1", True]),
        ("noise_seed", [-1, 2**63, 0.5]),
        ("deadline_s", [0, -1, 1e9, "soon"]),
        ("guidance_interval", [[0.9, 0.1], [0.5, 0.5], [0, 2], [0], ["0", "1"], "0-1"]),
        (
            "reference_schedule",
            ["", "anchor:\uff11\uff12", "stride:0", "window:nan-1", "anchor:-1"],
        ),
        ("approximation", ["", "fast", "cache:0", "cache:101", "cache:2+window:1-0", 2, True]),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_name(
    draw: Callable[..., httpx.Response], check_refusal: Check, name: str, values: list[object]
) -> None:
    for value in values:
        error = check_refusal(draw(**{name: value}), 400, "invalid_value")
        assert error["param"].startswith(name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" * 5000])
def test_numbers_that_json_does_not_have_are_refused(
    client: httpx.Client, check_refusal: Check, number: str
) -> None:
    for name in ("n", "seed", "image_guidance_scale", "deadline_s"):
        text = f'{{"prompt": "a dog", "{name}": {number}}}'
        check_refusal(client.post(DRAW, content=text, headers=JSON), 400)


def test_the_ends_of_the_ranges_are_drawn(draw: Callable[..., httpx.Response]) -> None:
    assert draw(n=10).status_code == 200
    last = draw(seed=2**63 - 1, n=2).json()["data"]
    assert [one["seed"] for one in last] == [2**63 - 1, 0]
    assert draw(num_inference_steps=50, seed=0, image_guidance_scale=100).status_code == 200
    assert draw(size="64x16").json()["size"] == "64x16"


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"colour": "red"}, 400, "unknown_field", "colour"),
        ({"style": "vivid"}, 400, "unknown_field", "style"),
        ({"a\nb\x1b[31m" * 30: 1}, 400, "unknown_field", "any"),
        ({"a \ud800": 1}, 400, "invalid_value", None),
        ({"model": "another"}, 404, "model_not_found", "model"),
        ({"model": "\ud800"}, 400, "invalid_value", "model"),
        ({"response_format": "url"}, 400, "invalid_value", "response_format"),
        ({"output_format": "gif"}, 400, "invalid_value", "output_format"),
        ({"output_compression": 101}, 400, "invalid_value", "output_compression"),
        ({"quality": "hd"}, 400, "invalid_value", "quality"),
        ({"background": "transparent"}, 400, "invalid_value", "background"),
        ({"user": "a" * 257}, 400, "invalid_value", "user"),
        ({"stream": "yes"}, 400, "invalid_value", "stream"),
        ({"partial_images": 4}, 400, "invalid_value", "partial_images"),
    ],
)
def test_fields_and_words_that_there_are_not_are_refused(
    draw: Callable[..., httpx.Response],
    check_refusal: Check,
    changes: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    error = check_refusal(draw(**changes), status, code, param)
    assert error["message"].isprintable()
