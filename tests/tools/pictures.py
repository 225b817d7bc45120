"""Draws the pictures of the documentation anew with the pair inside the package.

make pictures

docs/demo.png, and docs/assets/steps.png: a picture as it comes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from bootpig_rt.cli.demo import SampleSubject, read_subjects
from bootpig_rt.cli.main import main as run_command
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.picture import grid, save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

DOCS = Path(__file__).resolve().parents[2] / "docs"
STEPS_SHOWN = 6
_MOST_BYTES = 600_000
_COLOURS = (256, 128, 64)  # of a palette: the most that fit into so many bytes


def save(image: Image.Image, path: Path) -> None:
    """Write a picture with few bytes, and with the mark that it is generated."""
    rgb = image.convert("RGB")
    for colours in _COLOURS:
        palette = rgb.quantize(colours)
        dithered = rgb.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        save_png(dithered, path, {})
        if path.stat().st_size <= _MOST_BYTES:
            break
    print(f"{path}: {path.stat().st_size // 1000} kB")


def steps(pipe: Pipeline, sample: SampleSubject) -> Image.Image:
    """A picture as it comes, from noise on."""
    previews: list[Image.Image] = []

    def watch(event: object) -> None:
        if isinstance(event, StepEvent) and event.previews:
            previews.append(event.previews[0])

    prompt = f"{sample.prompt_class}, in the middle of a snowy field"
    subject = pipe.encode_subject(sample.file, sample.prompt_class)
    with pipe.serve() as engine:
        request = Request(prompt=prompt, subject=subject, seed=1)
        job = engine.submit(request, on_event=watch, preview_every=1)
        last = job.result().images[0]
    shown = [previews[k * len(previews) // STEPS_SHOWN] for k in range(STEPS_SHOWN)]
    return grid([one.resize(last.size) for one in (*shown, last)], STEPS_SHOWN + 1)


def main() -> int:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="default: docs")
    args = parser.parse_args()
    assets = args.output / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    sheet = args.output / "demo.png"
    run_command(["demo", "-o", str(sheet), "--quiet"])
    with Image.open(sheet) as image:
        image.load()
    save(image, sheet)
    with Pipeline() as pipe:
        save(steps(pipe, read_subjects(None)[0]), assets / "steps.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
