"""Subjects at the page: pictures of one's own, what the model sees of them, and the library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

Open = Callable[..., Any]
PROMPT = "a photo of a disc, in the middle of a snowy field"


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def files(*contents: bytes, kind: str = "image/png") -> list[Any]:
    suffix = kind.partition("/")[2]
    return [
        {"name": f"disc-{number}.{suffix}", "mimeType": kind, "buffer": content}
        for number, content in enumerate(contents)
    ]


@pytest.fixture(autouse=True)
def _empty_library(client: httpx.Client) -> None:
    for subject in client.get("/v1/subjects?limit=100").json()["data"]:
        assert client.delete(f"/v1/subjects/{subject['id']}").status_code == 200


def test_references_are_shown_as_the_model_sees_them(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    scene = png(Image.effect_noise((64, 48), 80).convert("RGB"))
    page.set_input_files("#files", files(reference_png, scene))
    page.wait_for_selector("#references li:nth-child(2) img[alt*='model sees']")
    seen = page.locator("#references img[alt*='model sees']")
    assert seen.count() == 2
    assert seen.first.evaluate("node => node.naturalWidth") == 32  # what the tiny pair works at
    warnings = page.locator("#references li .hint").all_text_contents()
    assert len(warnings) == 1  # the disc is cut out; the scene has no ground to cut it from
    assert "whole" in warnings[0]
    page.click("[aria-label='Remove picture 1']")
    assert page.locator("#references li").count() == 1


def test_a_picture_that_cannot_be_used_says_why_and_the_others_stay(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.set_input_files("#files", files(reference_png, reference_png[:80]))
    page.wait_for_selector("#references li.refused .problem")
    assert page.locator("#references li.refused").count() == 1
    assert page.locator("#references li:nth-child(2).refused").count() == 1
    page.click("[aria-label='Remove picture 2']")
    page.wait_for_selector("#references li img[alt*='model sees']")


def test_files_that_are_no_pictures_and_too_many_pictures_are_left_out(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.set_input_files("#files", files(b"hello", kind="text/plain"))
    assert "disc-0.plain: not a PNG" in page.inner_text("#reference-problem")
    page.set_input_files("#files", files(*[reference_png] * 5))
    assert page.locator("#references li").count() == 3  # that the tiny bundle was built for
    assert "reads 3 pictures" in page.inner_text("#reference-problem")


def test_own_pictures_need_consent_and_it_is_asked_for_once(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#examples li:first-child button")
    assert not page.is_visible("#consent")
    page.set_input_files("#files", files(reference_png))
    page.fill("#reference_prompt", "a photo of a disc")
    visit.draw(PROMPT, num_inference_steps=2)
    assert page.evaluate("document.activeElement.id") == "consent"
    assert visit.state == "empty"
    page.check("#consent")
    page.click("#draw")
    visit.wait_for_pictures(1)
    page.reload()
    page.wait_for_selector("#starters li")
    page.set_input_files("#files", files(reference_png))
    page.wait_for_selector("#references li")
    assert not page.is_visible("#consent")
    page.click("#open-about")
    assert "you agreed" in page.inner_text("#consent-state")


def test_a_subject_is_encoded_once_and_its_table_made_once(
    server: Any, open_page: Open, reference_png: bytes
) -> None:
    visit = open_page(server.url)
    page = visit.page
    asked: list[str] = []
    page.on("request", lambda one: asked.append(f"{one.method} {one.url.split('/', 3)[3]}"))
    page.evaluate("localStorage.setItem('bootpig.consent', '2026-01-01')")
    page.set_input_files("#files", files(reference_png))
    page.fill("#reference_prompt", "a photo of a disc")
    for number in (1, 2):
        visit.draw(PROMPT, num_inference_steps=3, seed=number, solver="unipc")
        visit.wait_for_pictures(number)
    assert asked.count("POST v1/subjects") == 1
    facts = page.locator("#facts li").all_text_contents()
    assert any("no reference pass" in one and "saved" in one for one in facts), facts


def test_the_library_shows_what_the_server_knows_and_draws_it(
    server: Any, client: httpx.Client, open_page: Open, reference_png: bytes
) -> None:
    made = [("image[]", ("disc.png", reference_png, "image/png"))]
    prompt = {"reference_prompt": "a photo of a disc"}
    id = client.post("/v1/subjects", data=prompt, files=made).json()["id"]
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "library")
    row = page.locator("#library li").first
    assert "a photo of a disc" in row.inner_text()
    assert "no reference pass" not in row.inner_text()
    row.locator(".choose").click()
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for_pictures(1)
    (kept,) = visit.kept()
    assert kept["reference_prompt"] == "a photo of a disc"
    page.reload()
    page.wait_for_selector("#starters li")
    visit.choose("source", "library")
    assert "known, no reference pass" in page.inner_text("#library li")
    page.click("[aria-label='Delete a photo of a disc']")
    page.click("#ask-yes")
    page.wait_for_selector("#library .hint")
    assert client.get(f"/v1/subjects/{id}").status_code == 404


def test_a_subject_leaves_and_comes_back_as_a_file(
    server: Any, client: httpx.Client, open_page: Open, reference_png: bytes, tmp_path: Path
) -> None:
    made = [("image[]", ("disc.png", reference_png, "image/png"))]
    prompt = {"reference_prompt": "a photo of a disc"}
    id = client.post("/v1/subjects", data=prompt, files=made).json()["id"]
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "library")
    with page.expect_download() as download:
        page.click("[aria-label='Download a photo of a disc']")
    path = tmp_path / download.value.suggested_filename
    assert path.suffix == ".subject"
    download.value.save_as(path)
    client.delete(f"/v1/subjects/{id}")
    page.set_input_files("#subject-file", path)
    page.wait_for_selector("#library [aria-pressed=true]")
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for_pictures(1)
    page.set_input_files("#subject-file", {"name": "a.subject", "mimeType": "", "buffer": b"no"})
    page.wait_for_selector("#toast:has-text('cannot')")


def test_a_subject_that_the_server_forgot_is_made_again_from_its_pictures(
    server: Any, client: httpx.Client, open_page: Open
) -> None:
    visit = open_page(server.url)
    visit.set(num_inference_steps=2)
    visit.page.click("#starters li:first-child button")
    visit.wait_for_pictures(1)
    (subject,) = client.get("/v1/subjects").json()["data"]
    client.delete(f"/v1/subjects/{subject['id']}")
    visit.page.click("#again")
    visit.wait_for_pictures(2)
