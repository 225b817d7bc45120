"""Draws the pictures of the documentation anew with the pair inside the package.

make pictures [PHOTOS=DIR]

docs/demo.png and docs/assets: steps.png (a picture as it comes), gallery-references.png (one
reference and two), gallery-student.png (the pair and its student), and with --photos, a folder with
a folder of photographs for each subject, gallery-photos.png. None is left out for how it looks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bootpig_rt.cli.demo import SampleSubject, read_subjects
from bootpig_rt.cli.main import main as run_command
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.background import load_remover
from bootpig_rt.images.picture import SheetRow, grid, label_sheet, save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCENES = ("in the middle of a sandy beach", "in the middle of a library")
SEEDS = (1, 2)
STEPS_SHOWN = 6
PHOTO_SCENES = (
    "in the middle of a sandy beach",
    "in the middle of a snowy field",
    "in the middle of a city street at night",
)
PHOTOS_ROWS = 6
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


def drawn(
    pipe: Pipeline, sample: SampleSubject, *, references: int | None = None
) -> tuple[list[Image.Image], list[Image.Image]]:
    """References as the pair sees them, and pictures: every scene with every seed."""
    subject = pipe.encode_subject(sample.files[:references], sample.prompt_class)
    result = pipe.generate(
        [
            Request(prompt=f"{sample.prompt_class}, {scene}", subject=subject, seed=seed)
            for scene in SCENES
            for seed in SEEDS
        ]
    )
    return subject.reference_images(), list(result.images)


def columns() -> list[str]:
    """Over the pictures of `drawn`."""
    return [f"..., {scene}, seed {seed}" for scene in SCENES for seed in SEEDS]


def steps(pipe: Pipeline, sample: SampleSubject) -> Image.Image:
    """A picture as it comes, from noise on."""
    previews: list[Image.Image] = []

    def watch(event: object) -> None:
        if isinstance(event, StepEvent) and event.previews:
            previews.append(event.previews[0])

    prompt = f"{sample.prompt_class}, in the middle of a snowy field"
    subject = pipe.encode_subject(sample.files, sample.prompt_class)
    with pipe.serve() as engine:
        request = Request(prompt=prompt, subject=subject, seed=1)
        job = engine.submit(request, on_event=watch, preview_every=1)
        last = job.result().images[0]
    shown = [previews[k * len(previews) // STEPS_SHOWN] for k in range(STEPS_SHOWN)]
    return grid([one.resize(last.size) for one in (*shown, last)], STEPS_SHOWN + 1)


def references(pipe: Pipeline, samples: Sequence[SampleSubject]) -> Image.Image:
    """Each subject of several views with one of them, and with all."""
    rows = []
    for sample in samples:
        for count in (1, len(sample.files)):
            given, pictures = drawn(pipe, sample, references=count)
            rows.append(SheetRow(given, pictures, f"{sample.caption}: {count}"))
    return label_sheet(rows, columns(), reference_header="references")


def student(pipe: Pipeline, fast: Pipeline, samples: Sequence[SampleSubject]) -> Image.Image:
    """Each subject by the pair, and by its student below."""
    rows = []
    for sample in samples:
        for who, name in ((pipe, "pair"), (fast, "student")):
            given, pictures = drawn(who, sample)
            count = who.spec.config.default_steps
            rows.append(SheetRow(given, pictures, f"{name}, {count} steps"))
    return label_sheet(rows, columns())


def photos(folder: Path) -> Image.Image:
    """Subjects of photographs, cut out first: the folders of `folder`, in order, named for each."""
    classes = folder / "prompts_and_classes.txt"  # as DreamBench has it
    lines = classes.read_text().splitlines() if classes.is_file() else []
    nouns = dict(line.split(",") for line in lines if line.count(",") == 1)
    rows = []
    with Pipeline(background_remover=load_remover("grabcut")) as pipe:
        for each in sorted(path for path in folder.iterdir() if path.is_dir())[:PHOTOS_ROWS]:
            noun = nouns.get(each.name, each.name.rstrip("0123456789").replace("_", " "))
            words = f"a photo of a {noun}"
            files = sorted(path for path in each.iterdir() if path.suffix in (".jpg", ".png"))
            subject = pipe.encode_subject(files[:2], words)
            result = pipe.generate(
                [Request(prompt=f"{words}, {scene}", subject=subject, seed=1)
                 for scene in PHOTO_SCENES]
            )  # fmt: skip
            rows.append(SheetRow(subject.reference_images(), result.images, noun))
    return label_sheet(rows, [f"..., {scene}" for scene in PHOTO_SCENES])


def main() -> int:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a folder of photographs for each subject")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="default: docs")
    args = parser.parse_args()
    assets = args.output / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    sheet = args.output / "demo.png"
    run_command(["demo", "-o", str(sheet), "--quiet"])
    with Image.open(sheet) as image:
        image.load()
    save(image, sheet)
    samples = read_subjects(None)
    several = [sample for sample in samples if len(sample.files) > 1]
    with Pipeline() as pipe, Pipeline(variant="fast") as fast:
        save(steps(pipe, samples[0]), assets / "steps.png")
        save(references(pipe, several), assets / "gallery-references.png")
        save(student(pipe, fast, samples[:4]), assets / "gallery-student.png")
    if args.photos is not None:
        save(photos(args.photos), assets / "gallery-photos.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
