"""Takes pictures of the report page at the width of a desk and of a phone, with Chromium.

    python -m bootpig_rt.benchmarks.report.screenshots docs/report/index.html docs

`make screenshots` runs this.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from bootpig_rt.errors import BackendUnavailable, ParameterError
from bootpig_rt.files.atomic import atomic_write_bytes

SHOTS = {"bench-report.png": (1280, 1500), "bench-report-phone.png": (400, 1500)}
"""Name of a picture: width and height in pixels of the page."""

_NARROWEST_WINDOW_PX = 500
_TIMEOUT_S = 120


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """The top of a page, as a browser of that width shows it.

    Raises:
        BackendUnavailable: There is no Chromium here.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise BackendUnavailable(
            "no chromium here; install it with `apt-get install chromium`, or leave the pictures"
        )
    with tempfile.TemporaryDirectory() as work:
        # A headless window is never narrower than 500 px. A frame is.
        frame, shot = Path(work) / "frame.html", Path(work) / "shot.png"
        style = f"width:{width}px;height:{height}px;border:0;display:block"
        frame.write_text(
            '<meta charset="utf-8"><body style="margin:0">'
            f'<iframe style="{style}" scrolling="no" src="{page.resolve().as_uri()}"></iframe>',
            encoding="utf-8",
        )
        window = max(width, _NARROWEST_WINDOW_PX)
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--hide-scrollbars", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--force-color-profile=srgb",
             f"--user-data-dir={Path(work) / 'profile'}", f"--window-size={window},{height}",
             "--virtual-time-budget=2000", f"--screenshot={shot}", frame.as_uri()],
            capture_output=True, timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip
        with Image.open(shot) as taken:
            return taken.convert("RGB").crop((0, 0, width, height))


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if not args.page.is_file():
        raise ParameterError(f"no page {args.page}; make it with `make figures`")
    for name, (width, height) in SHOTS.items():
        buffer = io.BytesIO()
        # 64 colours: plots and text need no more, and the file is a third.
        taken = screenshot(args.page, width, height).quantize(64)
        taken.save(buffer, "PNG", optimize=True)
        atomic_write_bytes(args.folder / name, buffer.getvalue())


if __name__ == "__main__":
    main()
