"""Draws the pictures of the documentation anew with the pair inside the package.

make pictures

docs/demo.png, and in docs/assets steps.png, a picture as it comes, and follow-a-map.png: subjects
that follow maps of depth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.cli.demo import SampleSubject, read_subjects
from bootpig_rt.cli.main import main as run_command
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.picture import grid, save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

DOCS = Path(__file__).resolve().parents[2] / "docs"
STEPS_SHOWN = 6
_MOST_BYTES = 600_000
_CARDS = ((4, 16, 32, 56), (32, 16, 60, 56), (20, 24, 44, 56))
"""Left, top, right and lower edge of a card in a map, in 64ths of its side."""
_COLOURS = (256, 128, 64)  # of a palette: the most that fit into so many bytes


def save(image: Image.Image, path: Path) -> None:
    """Write a picture with few bytes, and with the mark that it is generated."""
    rgb = image.convert("RGB")
    save_png(rgb, path, {})
    for colours in _COLOURS:
        if path.stat().st_size <= _MOST_BYTES:
            break
        palette = rgb.quantize(colours)
        dithered = rgb.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        save_png(dithered, path, {})
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


def maps(samples: Sequence[SampleSubject]) -> Image.Image:
    """A row a subject: maps of depth, each beside what was drawn with it, and a picture of none."""
    tiles: list[Image.Image] = []
    with Pipeline(pair=PairOptions(controls="depth")) as pipe:
        side_px = pipe.spec.config.sample_size_px
        black = Image.new("L", (side_px, side_px))
        for sample in samples:
            subject = pipe.encode_subject(sample.file, sample.prompt_class)
            prompt = f"{sample.prompt_class}, in the middle of a sandy beach"
            for edges in (*_CARDS, None):
                depth = black if edges is None else _card_before_ground(side_px, edges)
                control = None if edges is None else {"depth": np.asarray(depth)}
                drawn = pipe(prompt, subject=subject, control_image=control, seed=3).images[0]
                tiles += [depth.convert("RGB"), drawn]
    larger = [one.resize((2 * side_px, 2 * side_px), Image.Resampling.NEAREST) for one in tiles]
    return grid(larger, 2 * (len(_CARDS) + 1))


def _card_before_ground(side_px: int, edges: tuple[int, int, int, int]) -> Image.Image:
    ground = np.linspace(0, 120, side_px).astype(np.uint8)
    depth = Image.fromarray(np.repeat(ground[:, None], side_px, axis=1))
    left, top, right, lower = (edge * side_px // 64 for edge in edges)
    ImageDraw.Draw(depth).rectangle((left, top, right - 1, lower - 1), fill=230)
    return depth


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
    shown = [one for one in read_subjects(None) if one.file.stem in ("owl", "backpack")]
    save(maps(shown), assets / "follow-a-map.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
