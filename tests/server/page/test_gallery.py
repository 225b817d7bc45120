"""What is kept in the browser: pictures, their settings, a theme, consent."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx

Open = Callable[..., Any]
PROMPT = "a photo of a frog, in the middle of a snowy field"

DROP = """([name, type, data, selector]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  const { left, top } = document.querySelector(selector).getBoundingClientRect();
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const where = { clientX: left + 5, clientY: top + 5, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent(kind, { ...where, dataTransfer }));
  }
}"""


def drop(visit: Any, name: str, kind: str, data: bytes, selector: str = "h1") -> None:
    visit.page.evaluate(DROP, [name, kind, base64.b64encode(data).decode(), selector])


def a_picture(client: httpx.Client, **fields: Any) -> bytes:
    answer = client.post(
        "/v1/images/generations",
        json={"prompt": PROMPT, "num_inference_steps": 3, **fields},
        headers={"Accept": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def test_the_gallery_is_there_after_a_reload(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    for seed in (1, 2):
        visit.draw(PROMPT, num_inference_steps=2, seed=seed)
        visit.wait_for_pictures(seed)
    page.reload()
    page.wait_for_selector("#pictures li")
    assert page.locator("#pictures li").count() == 2
    page.click("#pictures li:nth-child(2) button")
    assert visit.state == "done"
    assert "seed 1" in page.locator("#facts li").all_text_contents()
    assert page.evaluate("document.getElementById('shown').naturalWidth") > 0


def test_a_deleted_picture_can_be_taken_back(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for("done")
    page.click("#delete-picture")
    assert visit.state == "empty"
    assert page.evaluate("document.activeElement.id") == "stage"
    assert visit.kept() == []
    page.click("#toast button")
    visit.wait_for("done")
    assert len(visit.kept()) == page.locator("#pictures li").count() == 1
    page.click("#clear-gallery")
    page.click("#ask >> text=Leave it")
    assert len(visit.kept()) == 1
    page.click("#clear-gallery")
    page.click("#ask-yes")
    page.wait_for_selector("#gallery-empty:visible")
    assert visit.kept() == []
    assert visit.state == "empty"


def test_settings_come_back_from_a_dropped_png(
    server: Any, client: httpx.Client, open_page: Open
) -> None:
    visit = open_page(server.url)
    page = visit.page
    settings = {"num_inference_steps": 4, "seed": 99, "text_guidance_scale": 4.5}
    picture = a_picture(client, negative_prompt="fog", solver="ddim", size="48x48", **settings)
    drop(visit, "drawn.png", "image/png", picture)
    visit.wait_for("done")
    for name, value in {**settings, "prompt": PROMPT, "negative_prompt": "fog"}.items():
        assert page.input_value(f"#{name}") == str(value)
    assert page.input_value("#solver") == "ddim"
    assert page.input_value("#size") == "48x48"
    assert page.is_checked("[name=source][value=none]")
    page.click("#draw")
    visit.wait_for_pictures(1)
    (kept,) = visit.kept()
    assert (kept["seed"], kept["solver"], kept["width"]) == (99, "ddim", 48)


def test_the_subject_of_a_restored_picture_comes_back(
    server: Any, client: httpx.Client, open_page: Open, reference_png: bytes
) -> None:
    files = [("image[]", ("disc.png", reference_png, "image/png"))]
    prompt = {"reference_prompt": "a photo of a disc that is restored"}
    subject = client.post("/v1/subjects", data=prompt, files=files).json()
    picture = a_picture(client, subject_id=subject["id"])
    visit = open_page(server.url)
    page = visit.page
    page.set_input_files(
        "#restore-file", {"name": "a.png", "mimeType": "image/png", "buffer": picture}
    )
    page.wait_for_selector("#library [aria-pressed=true]")
    assert "a photo of a disc that is restored" in page.inner_text("#library [aria-pressed=true]")
    assert client.delete(f"/v1/subjects/{subject['id']}").status_code == 200
    page.reload()
    page.wait_for_selector("#starters li")
    page.set_input_files(
        "#restore-file", {"name": "a.png", "mimeType": "image/png", "buffer": picture}
    )
    page.wait_for_selector("#toast:has-text('add its pictures')")
    assert page.input_value("#reference_prompt") == "a photo of a disc that is restored"


def test_a_picture_by_another_program_restores_nothing(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    named = {"name": "a.png", "mimeType": "image/png", "buffer": reference_png}
    page.set_input_files("#restore-file", named)
    page.wait_for_selector("#toast:has-text('carries no parameters')")
    assert visit.state == "empty"
    drop(visit, "disc.png", "image/png", reference_png)
    page.wait_for_selector("#references li img[alt*='model sees']")


def test_a_drawn_picture_may_be_a_reference_as_well(
    server: Any, client: httpx.Client, open_page: Open
) -> None:
    visit = open_page(server.url)
    drop(visit, "drawn.png", "image/png", a_picture(client), selector="#drop")
    visit.page.wait_for_selector("#references li img[alt*='model sees']")
    assert visit.state == "empty"


def test_a_theme_is_kept_and_the_system_decides_until_then(server: Any, open_page: Open) -> None:
    visit = open_page(server.url, color_scheme="dark")
    page = visit.page
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    assert page.evaluate(ground) == dark
    assert page.evaluate("localStorage.getItem('bootpig.theme')") is None


def test_the_page_and_its_limits_fit_narrow_screens(server: Any, open_page: Open) -> None:
    visit = open_page(server.url, viewport={"width": 320, "height": 640})
    page = visit.page
    page.click("#starters li:first-child button")
    visit.wait_for("done")
    page.click("#parameters summary")
    page.click("#settings summary")
    page.screenshot()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.click("#open-about")
    assert page.evaluate("document.getElementById('about').getBoundingClientRect().right") <= 320
