"""Access: nothing that axe finds, and all of it with the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]


def press_until(visit: Any, key: str, wanted: str, most: int = 60) -> None:
    """Press a key until an element has the focus."""
    for _ in range(most):
        visit.page.keyboard.press(key)
        if visit.page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            return
    raise AssertionError(f"{most} times {key} did not lead to {wanted}")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [("light", 1280), pytest.param("dark", 390, marks=pytest.mark.slow)],
    ids=["light-desk", "dark-phone"],
)
def test_axe_finds_nothing(server: Any, open_page: Open, scheme: str, width: int) -> None:
    pytest.importorskip("axe_playwright_python", reason="no axe")
    visit = open_page(server.url, color_scheme=scheme, viewport={"width": width, "height": 900})
    page = visit.page
    # On a phone the button stays in sight, and axe takes what lies under it for too small to press.
    page.evaluate("() => { document.getElementById('go').style.position = 'static'; }")
    assert visit.violations() == []
    visit.set(num_inference_steps=2, n=2)
    page.click("#starters li:first-child button")
    visit.wait_for_pictures(2)
    page.click("#parameters summary")
    visit.choose("source", "library")
    assert visit.violations() == []
    page.click("#library .choose")
    visit.draw(num_inference_steps=5000)
    visit.wait_for("failed")
    visit.choose("mode", "live")
    assert visit.violations() == []
    for opener, dialog in (("#open-about", "#about"), ("#clear-gallery", "#ask")):
        page.click(opener)
        page.wait_for_selector(f"{dialog}[open]")
        assert visit.violations() == []
        page.keyboard.press("Escape")


def test_a_picture_is_drawn_kept_and_compared_without_a_mouse(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    keys = page.keyboard
    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press_until(visit, "Tab", "#starters button")
    keys.press("Enter")
    visit.wait_for_pictures(1)
    press_until(visit, "Tab", "#split")
    keys.press("ArrowRight")
    assert page.input_value("#split") == "1"
    press_until(visit, "Tab", "#open-code")
    keys.press("Enter")
    page.wait_for_selector("#code-dialog[open]")
    press_until(visit, "Tab", "#copy-code")
    keys.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-code"
    press_until(visit, "Tab", "[name=source]")
    keys.press("ArrowRight")
    assert page.is_checked("[name=source][value=library]")
    press_until(visit, "Tab", "#library .choose")
    keys.press("Enter")
    assert page.evaluate("document.activeElement.matches('#library .choose')")
    press_until(visit, "Tab", "#prompt")
    keys.press("Control+a")
    keys.type("a photo of a frog, in the middle of a desert")
    keys.press("Control+Enter")
    visit.wait_for_pictures(2)
    assert page.evaluate("document.activeElement.id") == "prompt"
    press_until(visit, "Tab", "#pictures button")
    keys.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('li').matches(':nth-child(2)')")
    keys.press("Enter")
    assert page.evaluate("document.activeElement.id") == "stage"
    assert page.text_content("#outcome-prompt") == "a photo of a frog, in the middle of a library"


def test_a_screen_reader_hears_how_it_goes(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.evaluate(
        """() => {
          window.heard = [];
          const node = document.getElementById("announcement");
          const hear = () => window.heard.push(node.textContent);
          new MutationObserver(hear).observe(node, { childList: true });
        }"""
    )
    visit.choose("source", "none")
    visit.draw("a photo of a frog", num_inference_steps=40)
    visit.wait_for_pictures(1)
    heard = page.evaluate("window.heard")
    assert heard[-1].startswith("The picture is done, in ")
    assert len(heard) < 10  # and not every step
    assert page.get_attribute("#announcement", "role") == "status"
    assert page.get_attribute("#stage", "aria-busy") == "false"


def test_the_picture_comes_into_sight_on_a_phone(server: Any, open_page: Open) -> None:
    visit = open_page(server.url, viewport={"width": 390, "height": 844}, has_touch=True)
    page = visit.page
    visit.choose("source", "none")
    page.fill("#prompt", "a photo of a frog")
    page.locator("#settings summary").scroll_into_view_if_needed()
    visit.draw()
    visit.wait_for_pictures(1)
    top = page.evaluate("document.getElementById('canvas').getBoundingClientRect().top")
    assert 0 <= top < 400
