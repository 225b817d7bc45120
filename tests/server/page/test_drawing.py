"""Drawing at the page: from one click to a picture, with what comes between and after."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Request

Open = Callable[..., Any]
PROMPT = "a photo of a frog, in the middle of a snowy field"

WATCH = """() => {
  window.seen = { pictures: [], texts: [] };
  const note = () => {
    const { src } = document.getElementById("shown");
    if (src && window.seen.pictures.at(-1) !== src) window.seen.pictures.push(src);
    window.seen.texts.push(document.getElementById("progress-text").textContent);
  };
  const what = { subtree: true, attributes: true, childList: true, characterData: true };
  new MutationObserver(note).observe(document.getElementById("view"), what);
}"""


def test_a_newcomer_gets_a_picture_with_one_click(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#starters li:first-child button")
    visit.wait_for("done")
    assert page.input_value("#prompt") == "a photo of a frog, in the middle of a library"
    assert (
        page.get_attribute("#shown", "alt") == f"Generated picture: {page.input_value('#prompt')}"
    )
    assert page.text_content("#badge") == "AI generated"
    assert page.is_visible("#badge")
    facts = page.locator("#facts li").all_text_contents()
    assert re.fullmatch(r"[\d.]+ m?s", facts[0])
    assert any(re.fullmatch(r"\d+ reference pass(es)?|no reference pass", one) for one in facts)
    assert page.locator("#pictures li").count() == 1
    (kept,) = visit.kept()
    assert kept["prompt"] == page.input_value("#prompt")
    assert f"seed {kept['seed']}" in facts


def test_a_picture_grows_while_it_is_drawn(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.page.evaluate(WATCH)
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=12)
    visit.wait_for("done")
    seen = visit.page.evaluate("window.seen")
    assert len(set(seen["pictures"])) > 4
    steps = [int(at) for text in seen["texts"] for at in re.findall(r"step (\d+) of 12", text)]
    assert steps == sorted(steps)
    assert len(set(steps)) > 4
    assert any(re.search(r"[\d.]+ s left", text) for text in seen["texts"])


def test_whoever_waits_is_told_how_many_are_ahead(
    server: Any, client: httpx.Client, open_page: Open, eventually: Callable[..., bool]
) -> None:
    visit = open_page(server.url)
    visit.page.evaluate(WATCH)
    visit.choose("source", "none")
    visit.set(num_inference_steps=2)
    body = {"prompt": PROMPT, "num_inference_steps": 200, "n": 10}  # four are drawn at once
    named = {"x-request-id": "ahead-of-the-page"}
    with ThreadPoolExecutor(1) as others:
        first = others.submit(client.post, "/v1/images/generations", json=body, headers=named)
        with server.client() as second:
            waiting = re.compile(r"^bootpig_queue_pictures{.*} [1-9]", re.M)
            assert eventually(lambda: waiting.search(second.get("/metrics").text) is not None)
            visit.draw_at_once(prompt=PROMPT)
            visit.page.wait_for_function(
                "told => window.seen.texts.some((text) => new RegExp(told).test(text))",
                arg=r"^(Waiting: \d+ ahead of you|Next in line)",
            )
            assert second.post("/v1/jobs/ahead-of-the-page/cancel").status_code == 200
        visit.wait_for_pictures(1)
        assert first.result().status_code == 409


def test_several_pictures_are_drawn_and_chosen_from(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=3, n=3, seed=7)
    visit.wait_for("done")
    assert sorted(one["seed"] for one in visit.kept()) == [7, 8, 9]
    assert "seed 7" in page.locator("#facts li").all_text_contents()
    page.click("#strip li:nth-child(3) button")
    assert "seed 9" in page.locator("#facts li").all_text_contents()
    assert page.get_attribute("#strip li:nth-child(3) button", "aria-pressed") == "true"


def test_a_drawing_is_cancelled_with_escape(
    server: Any, client: httpx.Client, open_page: Open, eventually: Callable[..., bool]
) -> None:
    visit = open_page(server.url)
    ids: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith("/generations"):
            ids.append(request.headers["x-request-id"])

    visit.page.on("request", note)
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=200, n=10, size="64x64")
    visit.page.wait_for_function(
        "() => document.getElementById('progress-text').textContent.includes('step')"
    )
    visit.page.keyboard.press("Escape")
    visit.wait_for("empty")
    assert visit.page.evaluate("document.activeElement.id") == "draw"
    jobs: list[Any] = []

    def is_cancelled() -> bool:
        jobs.append(client.get(f"/v1/jobs/{ids[0]}").json())
        return bool(jobs[-1]["status"] == "cancelled")

    assert eventually(is_cancelled), jobs[-1]
    assert len(visit.kept()) == 0


def test_a_second_drawing_takes_the_place_of_the_first(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=200, n=10, size="64x64")  # it takes a while
    visit.draw_at_once(prompt="a photo of a gift", num_inference_steps=2, n=1)
    visit.wait_for("done")
    assert [one["prompt"] for one in visit.kept()] == ["a photo of a gift"]


def test_what_is_missing_is_asked_for_where_it_belongs(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#draw")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert "Say what to draw" in page.inner_text("#prompt-problem")
    assert page.get_attribute("#prompt", "aria-describedby") == "prompt-problem"
    visit.draw(PROMPT)
    assert page.evaluate("document.activeElement.id") == "choose"
    assert visit.state == "empty"
    visit.choose("source", "library")
    page.click("#draw")
    assert page.evaluate("document.activeElement.id") == "upload-subject"
    assert page.inner_text("#upload-subject-problem") == "Choose a subject from the library."


def test_a_seed_that_the_browser_would_round_is_not_sent(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.choose("source", "none")
    visit.draw(PROMPT, seed=2**53 + 2)
    assert "cannot count so far" in visit.page.inner_text("#seed-problem")
    assert visit.state == "empty"
    visit.page.fill("#seed", "3")
    assert visit.page.locator("#seed-problem").count() == 0


def test_a_scene_is_drawn_with_one_click(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.page.click("#examples li:nth-child(3) button")
    visit.set(num_inference_steps=2)
    visit.page.click("#scenes li:nth-child(2) button")
    visit.wait_for("done")
    (kept,) = visit.kept()
    assert kept["prompt"] == "a photo of a gift, in the middle of a sandy beach"
    assert kept["num_references"] == 1


def test_the_prompt_follows_what_the_references_show(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.page.click("#examples li:first-child button")
    visit.page.fill("#prompt", PROMPT)
    visit.page.fill("#reference_prompt", "a photo of a toad")
    assert visit.page.input_value("#prompt") == PROMPT.replace("frog", "toad")


def test_a_prompt_that_is_too_long_is_drawn_with_a_warning(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    visit.choose("source", "none")
    visit.draw("a photo of a frog " * 20, num_inference_steps=2)
    visit.wait_for_pictures(1)
    (warning,) = visit.page.locator("#warnings li").all_text_contents()
    assert re.fullmatch(
        r"A prompt has \d+ tokens, the model reads 24; its end is ignored\.", warning
    )


def test_a_prompt_is_text_wherever_it_is_shown(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    prompt = '<img src=x onerror="document.title=1"> "quoted" & <b>bold</b>'
    visit.choose("source", "none")
    visit.draw(prompt, num_inference_steps=2)
    visit.wait_for("done")
    assert page.text_content("#outcome-prompt") == prompt
    assert page.text_content("#pictures .prompt") == prompt
    assert page.locator("#outcome-prompt *").count() == 0
    assert page.title() == "bootpig_rt"


def test_the_reference_lies_over_the_picture_as_far_as_the_slider_says(
    server: Any, open_page: Open
) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.set(num_inference_steps=2)
    page.click("#starters li:first-child button")
    visit.wait_for("done")
    page.focus("#split")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#split", "aria-valuetext") == "40 percent"
    clip = page.evaluate("getComputedStyle(document.getElementById('beside')).clipPath")
    assert "60%" in clip
    assert page.text_content("#beside-label") == "reference"
    page.click("#pin")
    page.click("#again")
    visit.wait_for_pictures(2)
    assert page.input_value("#compare") == "pinned"
    assert page.get_attribute("#beside", "alt") == "The picture that was kept to compare"
    page.select_option("#compare", "none")
    assert not page.is_visible("#beside")


@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_code_of_a_picture_draws_it_again(
    server: Any, open_page: Open, language: str, tmp_path: Any
) -> None:
    import subprocess
    import sys

    from PIL import Image, ImageChops

    visit = open_page(server.url)
    page = visit.page
    visit.set(num_inference_steps=3, seed=5, negative_prompt='it\'s "dark"; $(exit 1) `exit 1`')
    page.click("#examples li:first-child button")
    visit.draw("a photo of a frog, in the middle of a “field” of Schnee")
    visit.wait_for("done")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "a-frog-in-the-middle-of-a-field-of-schnee-5.png"
    download.value.save_as(tmp_path / "page.png")
    page.click("#open-code")
    visit.choose("language", language)
    code = page.text_content("#code")
    if language == "curl":
        command = ["bash", "-euc", code]
    else:
        command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    drawn = Image.open(tmp_path / download.value.suggested_filename)
    with Image.open(tmp_path / "page.png") as shown:
        assert ImageChops.difference(drawn.convert("RGB"), shown.convert("RGB")).getbbox() is None
    drawn.close()
    page.click("#copy-code")
    page.wait_for_selector("#toast:has-text('Copied')")


def scene_png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (40, 120, 200)).save(stream, "PNG")
    return stream.getvalue()


def test_a_subject_is_painted_into_a_picture(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/edits"):
            bodies.append(request.post_data_json or {})

    page.on("request", note)
    visit.choose("source", "none")
    page.locator("#place").evaluate("node => { node.open = true; }")
    scene = {"name": "scene.png", "mimeType": "image/png", "buffer": scene_png()}
    page.set_input_files("#place-file", scene)
    page.wait_for_selector("#painter:not([hidden])")
    assert page.text_content("#place-hint").startswith("Fitted to 32 ")
    box = page.locator("#mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    visit.draw(PROMPT, num_inference_steps=3)
    visit.wait_for("done")
    (body,) = bodies
    mask = Image.open(io.BytesIO(base64.b64decode(body["mask"]["image_url"].partition(",")[2])))
    assert mask.size == (32, 32)
    alpha = mask.getchannel("A")
    drawn = [alpha.getpixel(at) == 0 for at in ((16, 16), (22, 16), (2, 2), (16, 30))]
    assert drawn == [True, True, False, False]
    (kept,) = visit.kept()
    assert kept["strength"] == 1.0
    assert kept["mask_edge_px"] == 4


def test_a_mask_is_painted_and_undone_with_the_keyboard(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.locator("#place").evaluate("node => { node.open = true; }")
    scene = {"name": "scene.png", "mimeType": "image/png", "buffer": scene_png()}
    page.set_input_files("#place-file", scene)
    page.wait_for_selector("#painter:not([hidden])")
    painted = """() => {
      const surface = document.getElementById("mask");
      const { data } = surface.getContext("2d").getImageData(0, 0, surface.width, surface.height);
      return data.filter((value, index) => index % 4 === 3 && value > 127).length;
    }"""
    assert page.evaluate("document.activeElement.id") == "mask"
    page.keyboard.press("Space")
    dab = page.evaluate(painted)
    assert 10 < dab < 100
    page.keyboard.press("ArrowRight")
    assert page.evaluate(painted) == dab
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(painted) > dab
    page.keyboard.press("Control+z")
    assert page.evaluate(painted) == dab
    page.click("#mask-clear")
    assert page.evaluate(painted) == 0
    page.click("#mask-undo")
    assert page.evaluate(painted) == dab
    page.click("#remove-place")
    assert page.is_hidden("#painter")
