"""Contact sheets: a subject's photographs as the pair saw them, and all of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.images.encode_image import encode_image
from bootpig_rt.images.image_input import load_image
from bootpig_rt.images.sheet import SheetRow, label_sheet
from bootpig_rt.training.evaluation.dreambench.data import BenchSubject, DreamBench
from bootpig_rt.training.evaluation.dreambench.drawing import REFERENCE_FOLDER
from bootpig_rt.training.evaluation.dreambench.shots import BenchShot, picture_path

TILE_PX = 160
PROMPTS_PER_BAND = 5
QUALITY = 85
OVERVIEW_PROMPTS = (1, 8, 20, 22, 24)
"""Snow, a blue house, red, shiny, cube shaped: objects and live subjects have them alike."""


def save_sheets(
    bench: DreamBench,
    folder: Path,
    per_prompt: int,
    on_progress: Callable[[str, int], None] | None = None,
) -> list[str]:
    """A JPEG for each subject, and one with the first picture of a few prompts of all subjects.

    Returns:
        Their paths below `folder`, the overview first.

    Raises:
        ImageError: A picture cannot be read.
        StorageError: The folder cannot be written.
    """
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    paths, overview = [], []
    few = [p for p in OVERVIEW_PROMPTS if p < bench.num_prompts] or [0]
    for number, subject in enumerate(bench.subjects):
        references = _references(folder, subject)
        pictures = [
            [
                _tile(picture_path(folder, bench, BenchShot(number, p, k)))
                for p in range(len(subject.prompts))
            ]
            for k in range(per_prompt)
        ]
        sheet = _subject_sheet(subject, references, pictures)
        paths.append(_save(sheet, folder, subject.name))
        chosen = [pictures[0][p] for p in few]
        overview.append(SheetRow(references, chosen, subject.name))
        if on_progress is not None:
            on_progress("sheets", 1)
    prompts = [_without_noun(bench.subjects[0], p) for p in few]
    return [_save(label_sheet(overview, prompts, tile_px=TILE_PX), folder, "overview"), *paths]


def _subject_sheet(
    subject: BenchSubject,
    references: Sequence[Image.Image],
    pictures: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """Bands of five prompts, one below the other; a row for each picture of a prompt."""
    bands = []
    for start in range(0, len(subject.prompts), PROMPTS_PER_BAND):
        part = slice(start, start + PROMPTS_PER_BAND)
        rows = [SheetRow(references, row[part]) for row in pictures]
        prompts = [prompt.text for prompt in subject.prompts[part]]
        bands.append(label_sheet(rows, prompts, tile_px=TILE_PX))
    sheet = Image.new(
        "RGB", (max(band.width for band in bands), sum(band.height for band in bands)), "white"
    )
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return sheet


def _references(folder: Path, subject: BenchSubject) -> list[Image.Image]:
    files = sorted((folder / REFERENCE_FOLDER / subject.name).glob("*.png"))
    return [_tile(file) for file in files or subject.photographs[:1]]


def _without_noun(subject: BenchSubject, prompt: int) -> str:
    """A prompt for subjects of all nouns."""
    return subject.prompts[prompt].text.replace(subject.noun, "...", 1)


def _tile(path: Path) -> Image.Image:
    image = load_image(path, what="picture").convert("RGB")
    image.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    return image


def _save(sheet: Image.Image, folder: Path, name: str) -> str:
    path = Path("sheets") / f"{name}.jpg"
    atomic_write_bytes(folder / path, encode_image(sheet, format="jpeg", compression=QUALITY))
    return path.as_posix()
