"""Modules of the page that need no server: PNG chunks, server-sent events, metrics, words."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, PngImagePlugin

from bootpig_rt.images.encode_image import encode_image

if TYPE_CHECKING:
    from playwright.sync_api import Page

Call = Callable[..., Any]


@pytest.fixture
def call(still_page: Page) -> Call:
    """A function that calls an exported function of a module with JSON values."""

    def call(module: str, body: str, argument: Any = None) -> Any:
        source = f"async (given) => {{ const m = await import('./page/js/{module}.js'); {body} }}"
        return still_page.evaluate(source, argument)

    return call


def chunk(kind: bytes, content: bytes) -> bytes:
    size, crc = len(content).to_bytes(4), zlib.crc32(kind + content).to_bytes(4)
    return size + kind + content + crc


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A small PNG with one more chunk after its header."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    data = stream.getvalue()
    return data[:33] + chunk(kind, content) + data[33:]


def read(call: Call, data: bytes, function: str = "readPng") -> Any:
    body = f"""
      const bytes = Uint8Array.from(atob(given), (one) => one.charCodeAt(0));
      return m.{function}(new Blob([bytes]));"""
    return call("png", body, base64.b64encode(data).decode())


def test_the_parameters_of_a_png_of_ours_are_read(call: Call) -> None:
    parameters = {"prompt": "a “frog” 🐸", "seed": 2**52, "guidance_interval": [0.0, 1.0]}
    data = encode_image(Image.new("RGB", (8, 8)), parameters=parameters)
    assert read(call, data, "readParameters") == parameters
    facts = read(call, data)
    assert facts["isMarkedGenerated"]
    assert not facts["hasCredentials"]
    assert read(call, with_chunk(b"caBX", b"jumbf"))["hasCredentials"]
    own = encode_image(Image.new("RGB", (8, 8)), is_generated=False)
    assert not read(call, own)["isMarkedGenerated"]


def test_text_chunks_of_all_kinds_are_read(call: Call) -> None:
    text = json.dumps({"prompt": "x"})
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text, zip=True)
    info.add_itxt("note", "é 🐸", zip=True)
    info.add_itxt("plain", "ü")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=info)
    texts = read(call, stream.getvalue())["texts"]
    assert texts == {"parameters": text, "note": "é 🐸", "plain": "ü"}


def test_damaged_and_foreign_files_hold_nothing(call: Call) -> None:
    whole = encode_image(Image.new("RGB", (8, 8)), parameters={"prompt": "x"})
    for data in (b"", b"GIF89a", whole[:-20], whole[:8], whole[:8] + b"\xff" * 60):
        assert read(call, data, "readParameters") is None
    for text in ("[1]", "{", '"x"', "null", '{"prompt": 3}'):
        assert (
            read(call, with_chunk(b"tEXt", b"parameters\0" + text.encode()), "readParameters")
            is None
        )
    bomb = b"parameters\0\0" + zlib.compress(b"x" * (4 << 20))
    assert read(call, with_chunk(b"zTXt", bomb))["texts"]["parameters"] == ""
    assert read(call, with_chunk(b"zTXt", b"parameters\0\0broken"))["texts"]["parameters"] == ""


def test_events_come_out_whole_however_they_arrive(call: Call) -> None:
    text = ': hello\r\nevent: a\r\ndata: {"x":\r\ndata: 1}\r\n\r\n'
    text += "data:two\n\nevent: empty\n\nid: 3\rdata: é: three\r\r"
    wanted = [
        {"event": "a", "data": '{"x":\n1}'},
        {"event": "message", "data": "two"},
        {"event": "message", "data": "é: three"},
    ]
    body = """
      return [1, 2, 3, 7, 1000].map((size) => {
        const parse = m.parser();
        const pieces = [...given.matchAll(new RegExp(`.{1,${size}}`, "gs"))].map(([one]) => one);
        return [...pieces.flatMap(parse), ...parse("\\n")];
      });"""
    assert call("events", body, text) == [wanted] * 5


METRICS = """
# HELP bootpig_pictures_total Pictures.
bootpig_pictures_total{model="a",outcome="succeeded"} %d
bootpig_pictures_total{model="a",outcome="failed"} 99.0
bootpig_queue_pictures{model="a"} 2.0
bootpig_queue_pictures{model="b \\"x\\", y"} 1.0
bootpig_http_request_duration_seconds_bucket{le="0.1",route="/v1/images/generations"} %d
bootpig_http_request_duration_seconds_bucket{le="1.0",route="/v1/images/generations"} %d
bootpig_http_request_duration_seconds_bucket{le="+Inf",route="/v1/images/generations"} %d
bootpig_http_request_duration_seconds_bucket{le="+Inf",route="/"} 1000
"""


def test_figures_come_from_the_metrics_of_the_server(call: Call) -> None:
    body = """
      const [first, last] = given.map((text, at) => m.readingOf(m.parseMetrics(text), 10 * at));
      const words = [m.figuresInWords(first, last), m.figuresInWords(last, last)];
      return [...words, m.quantile(first, last, 0.5)];"""
    words, still, half = call("figures", body, [METRICS % (5, 0, 4, 4), METRICS % (30, 10, 24, 24)])
    assert words == "3 waiting · 2.5 pictures/s · p50 100 ms · p99 982 ms"
    assert still == "3 waiting"
    assert half == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("status", "code", "title", "retry"),
    [
        (429, "queue_full", "The server is busy", 2.5),
        (429, "quota_exceeded", "You have used your share", 2.5),
        (503, "draining", "The server is closing", None),
        (503, "", "The server is starting", None),
        (504, "deadline_exceeded", "It was not done in time", None),
        (500, "numerical_error", "The model lost its way", None),
        (500, "unheard_of", "Something failed on the server", None),
        (413, "", "The pictures are too large", None),
        (418, "", "The server refused", None),
        (400, "invalid_value", "The server cannot draw this", None),
    ],
)
def test_refusals_are_told_in_words(
    call: Call, status: int, code: str, title: str, retry: float | None
) -> None:
    body = """
      const { ApiError } = await import("./page/js/api.js");
      const [status, code] = given;
      const error = { message: "n is 0, expected 1..4", code, param: "n" };
      return m.explain(new ApiError(status, error, { retryAfter_s: 2.5, requestId: "req_1" }));"""
    said = call("words", body, [status, code])
    assert said["title"] == title
    assert said["text"]
    assert said["retryIn_s"] == retry
    assert said["requestId"] == "req_1"


def test_where_a_picture_is_on_its_way_is_told_in_words(call: Call) -> None:
    def told(left_s: float | None = None, **progress: Any) -> str:
        whole = {"done": 0, "total": 25, "position": None, "expected_wait_s": None, **progress}
        words: str = call("words", "return m.progressInWords(...given);", [whole, left_s])
        return words

    assert (
        told(stage="queued", position=3, expected_wait_s=4.2)
        == "Waiting: 3 ahead of you, about 4 s"
    )
    assert told(stage="queued", position=0) == "Next in line"
    assert told(stage="reference", done=2, total=8) == "Reading the reference, 2 of 8"
    assert told(0.32, stage="steps", done=7) == "Drawing, step 7 of 25, 0.3 s left"
    assert told(190, stage="steps", done=7) == "Drawing, step 7 of 25, 3 min left"
