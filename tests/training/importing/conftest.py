"""Foreign samples of 40 px: a coloured disc on a striped ground, in every layout that is read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "orange", "purple", "teal")
SIDE_PX = 40


def picture(number: int, side: int = SIDE_PX) -> Image.Image:
    """A disc on stripes."""
    image = Image.new("RGB", (side, side), "tan")
    draw = ImageDraw.Draw(image)
    for top in range(0, side, 4):
        draw.line([(0, top), (side, top)], fill=(90 + 20 * (number % 6), 120, 90))
    draw.ellipse(disc(side), fill=COLOURS[number % len(COLOURS)])
    return image


def disc(side: int) -> tuple[int, int, int, int]:
    return side // 4, side // 4, 3 * side // 4, 3 * side // 4


def mask(side: int = SIDE_PX) -> Image.Image:
    """Where the disc is."""
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).ellipse(disc(side), fill=255)
    return image


def cut_out(number: int) -> Image.Image:
    """The disc alone, on white."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    image.paste(picture(number), mask=mask())
    return image


def to_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def load(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def caption(number: int) -> str:
    return f"A photo of a {COLOURS[number % len(COLOURS)]} ball, on a striped carpet."


@pytest.fixture(scope="session")
def discs() -> SimpleNamespace:
    """The functions above and below, which tests cannot import."""
    functions = (picture, mask, cut_out, to_bytes, load, caption, two_in_one, pair_rows)
    return SimpleNamespace(**{each.__name__: each for each in functions}, side_px=SIDE_PX)


class MakeTar(Protocol):
    """`make_tar(path, members)`."""

    def __call__(self, path: Path, members: list[tuple[str, bytes]]) -> Path: ...


@pytest.fixture(scope="session")
def make_tar() -> MakeTar:
    """A function that writes members as a tar file."""

    def make(path: Path, members: list[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture(scope="session")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples of a folder each; the fourth has no caption. Do not change."""
    folder = tmp_path_factory.mktemp("triplets")
    for number in range(7):
        sample = folder / f"ball-{number}"
        sample.mkdir()
        picture(number).save(sample / "target.png")
        mask().save(sample / "mask.png")
        cut_out(number).save(sample / "reference.png")
        if number != 3:
            (sample / "caption.txt").write_text(caption(number) + "\n")
    return folder


@pytest.fixture(scope="session")
def foreign_tars(make_tar: MakeTar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars as many tools write them: jpg, txt and json, five samples. Do not change."""
    folder = tmp_path_factory.mktemp("tars")
    for shard, numbers in enumerate([(0, 1, 2), (3, 4)]):
        members = []
        for number in numbers:
            told = {"prompt": caption(number), "about": {"thing": "ball"}}
            members += [
                (f"data/{number:04d}.jpg", to_bytes(picture(number), "JPEG")),
                (f"data/{number:04d}.txt", caption(number).encode()),
                (f"data/{number:04d}.seg.png", to_bytes(mask())),
                (f"data/{number:04d}.json", json.dumps(told).encode()),
            ]
        make_tar(folder / f"{shard:05d}.tar", members)
    return folder


def two_in_one(number: int, padding: int) -> bytes:
    """The same disc twice, as Subjects200K has its pictures."""
    image = Image.new("RGB", (2 * SIDE_PX + 3 * padding, SIDE_PX + 2 * padding))
    image.paste(picture(number), (padding, padding))
    image.paste(cut_out(number), (SIDE_PX + 2 * padding, padding))
    return to_bytes(image)


def pair_rows(count: int, *, padding: int = 4) -> list[dict[str, Any]]:
    """Rows of Subjects200K."""
    return [
        {
            "image": {"bytes": two_in_one(number, padding), "path": f"{number}.jpg"},
            "collection": "collection_2" if number % 2 else "collection_1",
            "quality_assessment": {
                "compositeStructure": 5,
                "objectConsistency": 5,
                "imageQuality": 5,
            },
            "description": {
                "item": f"{COLOURS[number % 6].title()} Ball",
                "description_0": f"It lies on a striped carpet, row {number}.",
                "description_1": f"It lies on white paper, row {number}.",
                "category": "toys",
                "description_valid": True,
            },
        }
        for number in range(count)
    ]


class MakeParquet(Protocol):
    """`make_parquet(path, rows, group_rows=...)`."""

    def __call__(self, path: Path, rows: list[dict[str, Any]], *, group_rows: int = ...) -> Path:
        """Write a parquet file."""


@pytest.fixture(scope="session")
def make_parquet() -> MakeParquet:
    """A function that writes rows as a parquet file, in row groups."""
    arrow: Any = pytest.importorskip("pyarrow", reason="needs the extra import")
    parquet: Any = pytest.importorskip("pyarrow.parquet")

    def make(path: Path, rows: list[dict[str, Any]], *, group_rows: int = 2) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=group_rows)
        return path

    return make
