"""Draws the pictures of the documentation anew with the pair inside the package.

make pictures

docs/demo.png, and in docs/assets steps.png, a picture as it comes; follow-a-map.png: subjects that
follow maps of depth; lora.png: a LoRA at several scales; xl-layout.png: the pair in XL's
layout; tiles.png: a large picture decoded in tiles.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.backends.tiles import in_tiles
from bootpig_rt.benchmarks.ours import psnr_db
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.cli.demo import SampleSubject, read_subjects
from bootpig_rt.cli.main import main as run_command
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.picture import grid, save_png
from bootpig_rt.images.sheet import SheetRow, label_sheet
from bootpig_rt.models.latent_scale import mean_latents
from bootpig_rt.models.load import load_vae
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.tools.style_lora import STYLE
from tests.xl_shaped import write_xl_shaped

DOCS = Path(__file__).resolve().parents[2] / "docs"
STEPS_SHOWN = 6
LORA_SCALES = (-0.5, 0.0, 0.5, 1.0)
LARGE_PX = (416, 480)
"""Of a picture that is decoded in tiles, width and height."""
DIFFERENCE_TIMES = 16
_MOST_BYTES = 600_000
_CARDS = ((4, 16, 32, 56), (32, 16, 60, 56), (20, 24, 44, 56))
"""Left, top, right and lower edge of a card in a map, in 64ths of its side."""
_GAP_PX, _LABEL_PX = 8, 32
_COLOURS = (256, 128, 64)  # of a palette: the most that fit into so many bytes


def save(
    image: Image.Image, path: Path, *, most_bytes: int = _MOST_BYTES, is_flat: bool = False
) -> None:
    """Write a picture with few bytes, and with the mark that it is generated.

    Args:
        image: Of any mode.
        path: A PNG.
        most_bytes: Where it has more, it gets a palette.
        is_flat: Its surfaces have one colour each, in which dots of others would be seen.
    """
    dither = Image.Dither.NONE if is_flat else Image.Dither.FLOYDSTEINBERG
    rgb = image.convert("RGB")
    save_png(rgb, path, {})
    for colours in _COLOURS:
        if path.stat().st_size <= most_bytes:
            break
        palette = rgb.quantize(colours)
        dithered = rgb.quantize(palette=palette, dither=dither)
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


def styled(samples: Sequence[SampleSubject]) -> Image.Image:
    """A row a subject: reference, and the same picture with a LoRA at several scales."""
    drawn: list[list[Image.Image]] = [[] for _ in samples]
    for scale in LORA_SCALES:
        loras = [Lora(STYLE, scale)] if scale else []
        with Pipeline(backend="torch", device="cpu", pair=PairOptions(lora=loras)) as pipe:
            for row, sample in zip(drawn, samples, strict=True):
                subject = pipe.encode_subject(sample.file, sample.prompt_class)
                prompt = f"{sample.prompt_class}, in the middle of a sandy beach"
                row += pipe(prompt, subject=subject, seed=1).images
    rows = []
    for sample, pictures in zip(samples, drawn, strict=True):
        with Image.open(sample.file) as reference:
            rows.append(SheetRow([reference.convert("RGBA")], pictures))
    headers = [f"scale {scale:g}" if scale else "without" for scale in LORA_SCALES]
    return label_sheet(rows, headers)


def tiled(sample: SampleSubject) -> Image.Image:
    """A large picture decoded whole, in tiles, and how far they are apart."""
    vae: Any = load_vae(default_model() / "vae")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def decode(latents: FloatArray) -> FloatArray:
        found: FloatArray = vae.decode(torch.from_numpy(latents.copy())).sample.numpy()
        return found

    pixels = np.asarray(_before_sky(sample), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        latents = mean_latents(vae, torch.from_numpy(pixels)).numpy()
    whole, tiles = (
        127.5 * (each[0].transpose(1, 2, 0).clip(-1, 1) + 1)
        for each in (decode(latents), in_tiles(decode, latents, reads=1, makes=factor))
    )
    difference = DIFFERENCE_TIMES * np.abs(tiles - whole)
    print(f"tiles: {psnr_db(tiles, whole):.1f} dB from the whole")
    labels = ("whole", "in four tiles", f"difference, {DIFFERENCE_TIMES} times")
    return _labelled((whole, tiles, difference), labels)


def xl_shaped(samples: Sequence[SampleSubject]) -> Image.Image:
    """A row a subject: reference, the pair's picture, that of its copy in XL's layout, the rest."""
    with tempfile.TemporaryDirectory() as folder:
        drawn: list[list[Image.Image]] = []
        for pair in (default_model(), write_xl_shaped(default_model(), Path(folder) / "xl")):
            with Pipeline(pair, backend="torch", device="cpu") as pipe:
                drawn.append(
                    [
                        pipe(
                            f"{sample.prompt_class}, in the middle of a snowy field",
                            subject=pipe.encode_subject(sample.file, sample.prompt_class),
                            seed=1,
                        ).images[0]
                        for sample in samples
                    ]
                )
    rows = []
    for sample, plain, shaped in zip(samples, *drawn, strict=True):
        apart = np.abs(np.asarray(plain, np.int16) - np.asarray(shaped, np.int16))
        print(f"xl: {sample.file.stem} is at most {apart.max()} of 255 apart")
        rest = Image.fromarray((64 * apart).clip(0, 255).astype(np.uint8))
        with Image.open(sample.file) as reference:
            rows.append(SheetRow([reference.convert("RGBA")], [plain, shaped, rest]))
    return label_sheet(rows, ["the pair", "in XL's layout", "difference, 64 times"])


def _before_sky(sample: SampleSubject) -> Image.Image:
    """A subject in front of a plain sky, RGB in `LARGE_PX`."""
    with Image.open(sample.file) as drawing:
        cut_out = drawing.convert("RGBA")
    scene = Image.new("RGBA", cut_out.size, (120, 180, 220, 255))
    scene.alpha_composite(cut_out)
    return scene.convert("RGB").resize(LARGE_PX, Image.Resampling.BICUBIC)


def _labelled(pictures: Sequence[FloatArray], labels: Sequence[str]) -> Image.Image:
    """Pictures [H, W, 3], 0 to 255, side by side with a word over each."""
    images = [
        Image.fromarray(picture.clip(0, 255).round().astype(np.uint8)) for picture in pictures
    ]
    row = grid(images, len(images), gap_px=_GAP_PX)
    sheet = Image.new("RGB", (row.width, row.height + _LABEL_PX), "white")
    sheet.paste(row, (0, _LABEL_PX))
    font = ImageFont.load_default(_LABEL_PX * 5 // 8)
    for number, label in enumerate(labels):
        left = number * (images[0].width + _GAP_PX)
        ImageDraw.Draw(sheet).text((left, 2), label, font=font, fill=(24, 24, 27))
    return sheet


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
    subjects = {sample.file.stem: sample for sample in read_subjects(None)}
    save(maps([subjects["owl"], subjects["backpack"]]), assets / "follow-a-map.png")
    three = [subjects[name] for name in ("owl", "backpack", "helicopter")]
    save(styled(three), assets / "lora.png")
    save(xl_shaped(three), assets / "xl-layout.png", most_bytes=300_000)
    save(tiled(subjects["owl"]), assets / "tiles.png", most_bytes=200_000, is_flat=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
