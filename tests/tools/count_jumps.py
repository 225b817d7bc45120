"""How far a reader must jump to follow one picture: `make jumps`, or `count_jumps()` in a test.

A warm `Pipeline` draws one picture in two steps from two reference images that it has not seen. Of
every call of a Python function that stands in a file of the package, in the order of the calls:
how many modules and functions there are, and how often the next call is in another module than the
last one. Python 3.11 counts a comprehension as a function, later versions do not.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image, ImageDraw

import bootpig_rt
from bootpig_rt import Pipeline

PACKAGE = Path(bootpig_rt.__file__).parent


@dataclass(frozen=True)
class Jumps:
    """The calls `(module, function)` in their order."""

    calls: tuple[tuple[str, str], ...]

    @property
    def modules(self) -> int:
        """How many modules a reader opens."""
        return len({module for module, _ in self.calls})

    @property
    def functions(self) -> int:
        """How many functions a reader reads."""
        return len(set(self.calls))

    @property
    def jumps(self) -> int:
        """How often the next call is in another module than the last one; the first counts."""
        modules = [module for module, _ in self.calls]
        return sum(a != b for a, b in zip(["", *modules], modules, strict=False))


def record(call: Callable[[], object]) -> Jumps:
    """Run `call` and note every call of the package's functions, on all threads that it starts."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        code = frame.f_code
        is_ours = module.partition(".")[0] == PACKAGE.name and not code.co_filename.startswith("<")
        if event == "call" and is_ours:
            calls.append((module, code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Jumps(tuple(calls))


def count_jumps(folder: Path) -> Jumps:
    """Of one warm picture from two files in `folder` with the shipped pair on ONNX Runtime."""

    def draw(first: str, second: str) -> None:
        files = []
        for colour in (first, second):
            image = Image.new("RGBA", (48, 40))
            ImageDraw.Draw(image).ellipse((6, 4, 40, 34), fill=colour)
            files.append(folder / f"{colour}.png")
            image.save(files[-1])
        pipe("a photo of a dog, in the snow", reference_images=files, num_inference_steps=2)

    pipe = Pipeline(backend="onnxruntime")
    draw("red", "blue")
    return record(lambda: draw("green", "yellow"))


def main() -> None:
    """Print the three counts, or with --calls every jump."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", action="store_true", help="print every jump and its function")
    wants = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = count_jumps(Path(folder))
    if wants.calls:
        last = ""
        for module, function in found.calls:
            if module != last:
                print(f"{module.partition('.')[2]}: {function}")
            last = module
    print(
        f"one warm picture: {found.modules} modules, {found.functions} functions, "
        f"{found.jumps} jumps between modules (Python {platform.python_version()})"
    )


if __name__ == "__main__":
    main()
