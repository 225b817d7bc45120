"""Pictures of the page for the documentation: `make screenshots` draws docs/assets/page-*.png anew.

Starts the server with the pair inside the package, and Chromium, which must be on the machine.
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
DESK = (1280, 860)
TALL = (1280, 1400)
PHONE = (390, 844)
SEED = "1"
_MOST_BYTES = 150_000
_COLOURS = (256, 128)  # of a palette: the most that fit into so many bytes
_SCALES = (1.0, 0.85, 0.7)  # and if none do
_GAP_PX = 24
_SETTLED_MS = 600


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that runs for the block."""
    command = [sys.executable, "-m", "bootpig_rt", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if "is ready at" in line).split()[-1]
    finally:
        process.terminate()
        process.wait()


def open_page(browser: Any, url: str, size: tuple[int, int], scheme: str) -> Any:
    """The page with a seed in its form, at the start."""
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.goto(url)
    page.wait_for_selector("#starters li img")
    page.wait_for_timeout(_SETTLED_MS)
    fill_in_settings(page, seed=SEED)
    return page


def fill_in_settings(page: Any, **values: str) -> None:
    """Fill fields of the settings, and close them again."""
    settings = page.locator("#settings")
    settings.evaluate("node => { node.open = true; }")
    for name, value in values.items():
        page.fill(f"#{name}", value)
    settings.evaluate("node => { node.open = false; }")


def draw_starter(page: Any, number: int, *, split: int) -> None:
    """Draw an example, and move the slider."""
    page.click(f"#starters li:nth-child({number}) button")
    page.wait_for_selector("#stage[data-state=done]")
    page.locator("#split").fill(str(split))


def draw_scenes(page: Any, subjects: tuple[int, ...]) -> None:
    """Draw each of some examples in a scene, for the gallery."""
    for number in subjects:
        page.click(f"#examples li:nth-child({number}) button")
        page.wait_for_selector("#references img[alt*='model sees']")
        before = page.locator("#pictures li").count()
        page.click(f"#scenes li:nth-child({number}) button")
        page.wait_for_function(
            "count => document.querySelectorAll('#pictures li').length > count", arg=before
        )
        page.wait_for_selector("#stage[data-state=done]")


def shoot(page: Any, name: str) -> Image.Image:
    """A picture of what is in the window."""
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.wait_for_timeout(_SETTLED_MS)
    return save(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), name)


def save(image: Image.Image, name: str) -> Image.Image:
    """Write a picture with few bytes; returns it as it was."""
    path = ASSETS / f"page-{name}.png"
    for scale, colours in itertools.product(_SCALES, _COLOURS):
        size = (round(scale * image.width), round(scale * image.height))
        small = image.resize(size, Image.Resampling.LANCZOS)
        palette = small.quantize(colours)
        dithered = small.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        dithered.save(path, optimize=True)
        if path.stat().st_size < _MOST_BYTES:
            break
    return image


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """Pictures of one height on white."""
    width = sum(one.width for one in images) + _GAP_PX * (len(images) - 1)
    sheet = Image.new("RGB", (width, images[0].height), "white")
    left = 0
    for one in images:
        sheet.paste(one, (left, 0))
        left += one.width + _GAP_PX
    return sheet


def shoot_all(browser: Any, url: str) -> None:
    """Every picture of the page that the documentation shows."""
    page = open_page(browser, url, DESK, "light")
    shoot(page, "start")
    draw_starter(page, 1, split=45)
    shoot(page, "picture")

    page = open_page(browser, url, TALL, "light")
    page.click("#examples li:first-child button")
    draw_scenes(page, (2, 3, 5, 6, 1, 4, 1))
    page.locator("[name=source][value=library]").check()
    page.locator("#library .choose", has_text="tractor").click()
    shoot(page, "gallery")

    page = open_page(browser, url, DESK, "dark")
    page.click("#examples li:nth-child(1) button")
    page.fill("#prompt", "a photo of a tractor, in the middle of a lake at sunset")
    page.locator("[name=mode][value=live]").check()
    page.wait_for_selector("#stage[data-state=live]")
    page.focus("#live-seed")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(150)
    page.wait_for_selector("#live-figure:has-text('pictures/s')")
    shoot(page, "live")

    start = open_page(browser, url, PHONE, "light")
    drawn = open_page(browser, url, PHONE, "dark")
    first = shoot(start, "phone")
    draw_starter(drawn, 5, split=0)
    save(side_by_side([first, shoot(drawn, "phone")]), "phone")


def main() -> int:
    """Draw all of them."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("no Chromium on this machine: apt-get install chromium", file=sys.stderr)
        return 2
    with server() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        shoot_all(browser, url)
        browser.close()
    for path in sorted(ASSETS.glob("page-*.png")):
        print(f"{path.name}: {path.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
