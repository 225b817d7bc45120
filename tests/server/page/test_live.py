"""Live mode: the picture follows what is typed. The latest wish wins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.shipped import few_step_model

Open = Callable[..., Any]

# `fetch` stands for the server here: a picture is done, and time goes by, when the test says so.
FOLLOW = """async ({ took_ms }) => {
  const { Live } = await import("./page/js/live.js");
  const log = [];
  const waiting = [];
  window.fetch = (url, { signal } = {}) => {
    if (String(url).includes("/cancel")) return Promise.resolve(new Response("{}"));
    return new Promise((done, fail) => {
      const one = () => done(Response.json({ data: [{ b64_json: "" }], timings: {} }));
      waiting.push(one);
      signal.addEventListener("abort", () => {
        waiting.splice(waiting.indexOf(one), 1);
        fail(signal.reason);
      });
    });
  };
  const live = new Live({
    bodyOf: async (wish) => { log.push(`begin ${wish}`); return { prompt: wish }; },
    onPicture: (drawn, wish) => log.push(`shown ${wish}`),
    onFailure: (error, wish) => log.push(`failed ${wish}: ${error}`),
  });
  let now_ms = 1000;
  performance.now = () => now_ms;
  const pause = () => new Promise((done) => setTimeout(done, 30));
  const finish = async () => { waiting.shift()(); await pause(); };
  live.wish("a");
  await pause();
  now_ms += took_ms;
  live.wish("ab");   // nothing was shown for long: "a" may end
  live.wish("abc");  // "ab" is never begun
  await pause();
  await finish();
  live.wish("abcd"); // "a" was shown just now: is "abc" let go?
  await pause();
  await finish();
  if (waiting.length) await finish();
  live.stop();
  return log;
}"""


def test_the_latest_wish_wins_over_slow_pictures_and_quick_ones_are_drawn_to_their_end(
    server: Any, open_page: Open
) -> None:
    page = open_page(server.url).page
    slow = page.evaluate(FOLLOW, {"took_ms": 400})
    assert slow == ["begin a", "shown a", "begin abc", "begin abcd", "shown abcd"]
    begun_and_shown = ["begin abc", "shown abc", "begin abcd", "shown abcd"]
    assert page.evaluate(FOLLOW, {"took_ms": 10}) == ["begin a", "shown a", *begun_and_shown]


def test_the_picture_follows_the_prompt_as_it_is_typed(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    page.click("#examples li:first-child button")
    visit.choose("mode", "live")
    assert "no model of few steps" in page.inner_text("#live-hint")
    page.locator("#prompt").press_sequentially("a photo of a frog, in the middle of a", delay=20)
    visit.wait_for("live")
    page.locator("#prompt").press_sequentially(" library", delay=20)
    wanted = f"Generated picture: {page.input_value('#prompt')}"
    page.wait_for_selector(f"#shown[alt='{wanted}']")
    page.wait_for_selector("#live-figure:has-text('pictures/s')")
    assert page.is_visible("#badge")
    assert not page.is_visible("#draw")
    old = page.get_attribute("#shown", "src")
    page.focus("#live-seed")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.getElementById('shown').src !== old", arg=old)
    assert visit.kept() == []
    page.click("#keep")
    page.wait_for_selector("#pictures li")
    (kept,) = visit.kept()
    assert kept["prompt"] == page.input_value("#prompt")
    visit.choose("mode", "draw")
    visit.wait_for("done")
    assert page.is_visible("#draw")


def test_live_mode_goes_on_when_the_server_comes_back(server: Any, open_page: Open) -> None:
    visit = open_page(server.url)
    page = visit.page
    visit.choose("source", "none")
    visit.choose("mode", "live")
    page.fill("#prompt", "a photo of a frog")
    visit.wait_for("live")
    page.context.set_offline(True)
    page.fill("#prompt", "a photo of an owl")
    page.wait_for_selector("#notice:visible")
    page.context.set_offline(False)
    page.wait_for_selector("#shown[alt='Generated picture: a photo of an owl']")


@pytest.mark.slow
def test_the_model_of_few_steps_draws_along(
    start_server: Callable[..., Any], open_page: Open, root: Path
) -> None:
    pair, student = root / "bootpig_rt" / "assets" / "pair", few_step_model()
    server = start_server("--models", f"turbo={student}", model=pair)
    visit = open_page(server.url)
    page = visit.page
    visit.set(num_inference_steps=25, image_guidance_scale=3)  # of the other model
    page.click("#examples li:first-child button")
    page.fill("#prompt", "a photo of a frog, in the middle of a library")
    visit.choose("mode", "live")
    visit.wait_for("live")
    assert page.inner_text("#live-hint") == "turbo"
    page.click("#keep")
    page.wait_for_selector("#pictures li")
    (kept,) = visit.kept()
    assert kept["num_inference_steps"] < 10
    assert kept["image_guidance_scale"] == 1
