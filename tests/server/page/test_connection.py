"""When the server is away, full, strict, or wants a key: what the page says, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bootpig_rt.server.guard.key_changes import add_key

Open = Callable[..., Any]
PROMPT = "a photo of a frog, in the middle of a snowy field"
PICTURES = "/v1/images/generations"


def test_the_page_tells_that_the_server_is_away_and_comes_back_by_itself(
    server: Any, open_page: Open
) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    page.context.set_offline(True)
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for("failed")
    assert page.inner_text("#refusal h2") == "The server is away"
    page.wait_for_selector("#notice:has-text('Looking again')")
    assert page.input_value("#prompt") == PROMPT
    page.context.set_offline(False)
    page.wait_for_selector("#notice", state="hidden")
    page.wait_for_selector("#figures:has-text('wait')")
    page.click("#refusal button")
    visit.wait_for_pictures(1)


def test_a_refused_value_is_told_beside_its_field(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#examples li:first-child button")
    refused = [
        ("num_inference_steps", "201", "expected 1..200"),
        ("num_inference_steps", "1001", "Steps"),  # what the form calls it
        ("size", "33x33", "multiple"),
        ("reference_schedule", "sometimes", "anchor:T"),
    ]
    for number, (field, value, said) in enumerate(refused, 1):
        visit.draw(PROMPT, **{"num_inference_steps": 2, field: value})
        visit.wait_for("failed")
        problem = page.inner_text(f"#{field}-problem")
        assert said in problem
        assert problem in page.inner_text("#refusal")
        assert page.evaluate("document.activeElement.id") == field
        assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
        page.fill(f"#{field}", "2" if field == "num_inference_steps" else "")
        page.click("#draw")
        visit.wait_for_pictures(number)
        assert page.locator(".problem:visible").count() == 0


@pytest.mark.slow
def test_a_full_server_is_asked_again_when_it_said(
    start_server: Callable[..., Any], open_page: Open
) -> None:
    most = "24"  # pictures of one request, and all that may wait
    server = start_server("--max-waiting", most, "--max-images", most, "--max-batch", "1")
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    many = {"prompt": PROMPT, "num_inference_steps": 50, "n": int(most), "stream": True}
    with server.client() as client, client.stream("POST", PICTURES, json=many) as other:
        assert other.status_code == 200  # it has its places; this returns before it is drawn
        visit.draw(PROMPT, num_inference_steps=2, n=int(most))
        visit.wait_for("failed")
        assert page.inner_text("#refusal h2") == "The server is busy"
        assert "by itself in" in page.inner_text("#refusal button")
    visit.wait_for_pictures(int(most))


def test_a_strict_server_is_asked_with_a_key_that_the_page_keeps_to_itself(
    start_server: Callable[..., Any], open_page: Open, tmp_path: Path
) -> None:
    _, token = add_key(tmp_path / "keys.json", "alice")
    (tmp_path / "words.txt").write_text("forbidden\n")
    flags = ["--blocklist", str(tmp_path / "words.txt"), "--contact", "mailto@example.org"]
    server = start_server("--keys", str(tmp_path / "keys.json"), *flags)
    visit = open_page(server.url, waits=False)
    page = visit.page
    page.wait_for_selector("#key-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("bpk_wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-problem:visible")
    page.fill("#key", token)
    page.keyboard.press("Enter")
    page.wait_for_selector("#starters li")
    assert not page.is_visible("#key-dialog")
    page.click("#starters li:first-child button")
    visit.wait_for_pictures(1)
    page.click("#open-code")
    for language in ("curl", "python"):
        visit.choose("language", language)
        code = page.text_content("#code")
        assert "BOOTPIG_KEY" in code
        assert token not in code
    page.keyboard.press("Escape")
    visit.draw("something forbidden")
    visit.wait_for("failed")
    assert page.inner_text("#refusal h2") == "The server does not draw this"
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.click("#open-about")
    assert page.get_attribute("#contact a", "href") == "mailto:mailto@example.org"
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("#starters li")  # the key is kept for the tab
    assert page.evaluate("JSON.stringify(localStorage)").find(token) == -1
    page.click("#open-key")
    page.click("#key-forget")
    page.wait_for_selector("#key-dialog[open]")


def test_the_page_has_a_strict_policy_and_it_holds(server: Any, open_page: Open) -> None:
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    visit = open_page(server.url)
    broken = visit.page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
          const script = document.createElement("script");
          script.textContent = "window.broken = true";
          document.head.append(script);
        })"""
    )
    assert broken == "inline"
    assert visit.page.evaluate("window.broken") is None
    visit.complaints.clear()  # that was the violation


@pytest.mark.slow
def test_the_page_outlives_its_server(start_server: Callable[..., Any], open_page: Open) -> None:
    first = start_server()
    visit = open_page(first.url)
    page = visit.page
    page.click("#starters li:first-child button")
    visit.wait_for_pictures(1)
    assert first.stop() == 0
    visit.draw(PROMPT, num_inference_steps=2)
    visit.wait_for("failed")
    page.wait_for_selector("#notice:visible")
    page.click("#pictures li:first-child button")  # what was drawn is still there
    visit.wait_for("done")
    start_server("--port", str(first.port))
    page.wait_for_selector("#notice", state="hidden")
    page.click("#draw")  # the new server knows no subject: it is made again from its picture
    visit.wait_for_pictures(2)
