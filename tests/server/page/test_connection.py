"""When the server is away, full, strict, or wants a key: what the page says, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]
PROMPT = "a photo of a frog, in the middle of a snowy field"


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
    page.click("#refusal button")
    visit.wait_for_pictures(1)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_inference_steps", "51", "1..50"),
        ("size", "33x33", "multiple"),
        ("reference_schedule", "sometimes", "anchor:T"),
    ],
)
def test_a_refused_value_is_told_beside_its_field(
    server: Any, open_page: Open, field: str, value: str, said: str
) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#examples li:first-child button")
    visit.draw(PROMPT, **{field: value})
    visit.wait_for("failed")
    problem = page.inner_text(f"#{field}-problem")
    assert said in problem
    assert problem in page.inner_text("#refusal")
    assert page.evaluate("document.activeElement.id") == field
    assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
    page.fill(f"#{field}", "")
    page.click("#draw")
    visit.wait_for_pictures(1)
    assert page.locator(".problem:visible").count() == 0


def test_a_full_server_is_asked_again_when_it_said(
    start_server: Callable[..., Any], open_page: Open
) -> None:
    server = start_server("--max-waiting", "1")
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    visit.draw(PROMPT, num_inference_steps=2, n=2)  # more than may wait
    visit.wait_for("failed")
    assert page.inner_text("#refusal h2") == "The server is busy"
    assert "by itself in" in page.inner_text("#refusal button")
    visit.set(n=1)
    visit.wait_for_pictures(1)
