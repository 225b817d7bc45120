"""Pictures of pages for the documentation: `make screenshots` draws docs/assets/page-*.png anew.

Starts the server with the pair inside the package, and Chromium, which must be on the machine.
Where BOOTPIG_RT_COMFYUI names a ComfyUI, as for its tests, `comfyui.png` is drawn as well.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "docs" / "assets"
COMFYUI = os.environ.get("BOOTPIG_RT_COMFYUI", "")
WORKFLOW = "subject_in_a_scene"
DESK = (1280, 860)
TALL = (1280, 1400)
PHONE = (390, 844)
WIDE = (1680, 760)
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
    return save(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), f"page-{name}")


def save(image: Image.Image, name: str) -> Image.Image:
    """Write a picture with few bytes; returns it as it was."""
    path = ASSETS / f"{name}.png"
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
    page.locator("#library .choose", has_text="frog").click()
    shoot(page, "gallery")

    page = open_page(browser, url, DESK, "dark")
    page.click("#examples li:nth-child(1) button")
    page.fill("#prompt", "a photo of a frog, in the middle of a lake at sunset")
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
    save(side_by_side([first, shoot(drawn, "phone")]), "page-phone")


@contextmanager
def comfyui() -> Iterator[str]:
    """The address of a ComfyUI on the CPU that has the nodes, for the block."""
    with tempfile.TemporaryDirectory() as work, socket.socket() as free:
        folder = Path(work)
        for name in ("custom_nodes", "input", "output", "models", "user/default"):
            (folder / name).mkdir(parents=True)
        (folder / "custom_nodes" / "bootpig_rt").symlink_to(ROOT / "integrations" / "comfyui")
        shutil.copy(ROOT / "bootpig_rt" / "assets" / "subjects" / "owl.png", folder / "input")
        settings = folder / "user" / "default" / "comfy.settings.json"
        # No templates in the way, and nothing over the nodes.
        hidden = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, **hidden}))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        python = os.environ.get("BOOTPIG_RT_COMFYUI_PYTHON", sys.executable)
        command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", work]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite://"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONSAFEPATH", None)  # ComfyUI imports from its own folder
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=COMFYUI, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        url = f"http://127.0.0.1:{port}"
        try:
            while not _answers(f"{url}/system_stats"):
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text()[-3000:])
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def shoot_comfyui(browser: Any, url: str) -> None:
    """An example workflow that has run."""
    width, height = WIDE
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(300_000)
    page.goto(url)
    page.wait_for_function("() => window.app && window.app.graph && window.app.extensionManager")
    page.wait_for_timeout(5 * _SETTLED_MS)
    path = ROOT / "integrations" / "comfyui" / "example_workflows" / f"{WORKFLOW}.json"
    page.evaluate("graph => window.app.loadGraphData(graph)", json.loads(path.read_text()))
    page.evaluate("() => window.app.queuePrompt(0)")
    while not _answers(f"{url}/history", "outputs"):
        page.wait_for_timeout(_SETTLED_MS)
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(5 * _SETTLED_MS)
    save(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), "comfyui")


def _answers(url: str, word: str = "") -> bool:
    """Whether an address answers, with a word in it."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return word in answer.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return False


def main() -> int:
    """Draw all of them."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("no Chromium on this machine: apt-get install chromium", file=sys.stderr)
        return 2
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        with server() as url:
            shoot_all(browser, url)
        if COMFYUI:
            with comfyui() as url:
                shoot_comfyui(browser, url)
        browser.close()
    for path in sorted([*ASSETS.glob("page-*.png"), *ASSETS.glob("comfyui.png")]):
        print(f"{path.name}: {path.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
