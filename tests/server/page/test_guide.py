"""Maps at the page: offered where the model has controls, fitted, sent, and taken away again."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Request

Open = Callable[..., Any]
PROMPT = "a photo of a frog, on a sandy beach"


def map_png() -> bytes:
    """Wider than what is drawn: dark on the left, light on the right."""
    stream = io.BytesIO()
    picture = Image.new("L", (60, 30), 40)
    picture.paste(220, (30, 0, 60, 30))
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_follows_a_map_until_it_is_removed(followed_server: Any, open_page: Open) -> None:
    visit = open_page(followed_server.url)
    page = visit.page
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith(("/generations", "/edits")):
            bodies.append(request.post_data_json or {})

    page.on("request", note)
    visit.choose("source", "none")
    page.wait_for_selector("#guide:not([hidden])")
    page.locator("#guide").evaluate("node => { node.open = true; }")
    kinds = page.locator("#guide-kind option").all_text_contents()
    assert kinds == ["depth", "outline"]
    file = {"name": "depth.png", "mimeType": "image/png", "buffer": map_png()}
    page.set_input_files("#guide-file", file)
    page.wait_for_selector("#guide-shown:not([hidden])")
    page.locator("#guide-scale").fill("50")
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for("done")
    (control,) = bodies[-1]["controls"]
    assert (control["kind"], control["source"], control["scale"]) == ("depth", "map", 0.5)
    sent = Image.open(io.BytesIO(base64.b64decode(control["image_url"].partition(",")[2])))
    assert sent.size == (32, 32)  # the middle of it: half is dark, half is light
    assert [sent.convert("L").getpixel(at) for at in ((3, 16), (28, 16))] == [40, 220]
    page.click("#remove-guide")
    assert page.is_hidden("#guide-shown")
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for_pictures(2)
    assert "controls" not in bodies[-1]


def test_a_model_without_controls_offers_no_map(server: Any, open_page: Open) -> None:
    page = open_page(server.url).page
    assert page.is_hidden("#guide")
