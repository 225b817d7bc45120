"""Which models are used, what prompts call them, and which are held out: `models.csv`.

Names come from the files' names and were read over one by one, with a picture of each. A row
without a noun is a model that is left out, and says why.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bootpig_rt.training.splits import Split

MODELS_FILE = Path(__file__).with_name("models.csv")


@dataclass(frozen=True)
class Model:
    """One model that is used: `source` is its source's key, `path` its file there."""

    source: str
    path: str
    noun: str
    split: Split

    @property
    def key(self) -> str:
        """Name of the identity."""
        return f"{self.source}/{self.path}"


@cache
def load_catalogue() -> tuple[Model, ...]:
    """Read the models that are used."""
    splits: dict[str, Split] = {
        "train": "train",
        "held_out_identity": "held_out_identity",
        "held_out_concept": "held_out_concept",
    }
    with MODELS_FILE.open(newline="", encoding="utf-8") as stream:
        return tuple(
            Model(row["source"], row["path"], row["noun"], splits[row["split"]])
            for row in csv.DictReader(stream)
            if row["noun"]
        )
