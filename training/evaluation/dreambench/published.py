"""What others report for DreamBench, as printed, with whatever makes a row another measure."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class PublishedRow:
    """One method; None is what its table leaves out.

    Attributes:
        method: Its name.
        base: The model that it starts from.
        references: How many photographs it is given, "" where unknown.
        dino: DINO.
        clip_i: CLIP-I.
        clip_t: CLIP-T.
        source: Where the numbers are printed.
        remark: In what the row's protocol is known to differ, "" where in nothing.
    """

    method: str
    base: str
    references: str
    dino: float | None
    clip_i: float | None
    clip_t: float | None
    source: str
    remark: str


def load_published() -> list[PublishedRow]:
    """All rows, in the file's order."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [
            PublishedRow(
                method=row["method"],
                base=row["base"],
                references=row["references"],
                dino=_number(row["dino"]),
                clip_i=_number(row["clip_i"]),
                clip_t=_number(row["clip_t"]),
                source=row["source"],
                remark=row["remark"],
            )
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> float | None:
    return float(text) if text else None
