"""What may change between two runs in one folder: one table, in the code and in the docs."""

from __future__ import annotations

import re
from pathlib import Path

from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.resume import MAY_CHANGE, flatten

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train.md"


def test_all_that_may_change_are_settings() -> None:
    settings = flatten(TrainConfig("vae", "runs/x").to_dict())
    assert [name for name in MAY_CHANGE if name not in settings] == []


def test_what_makes_another_training_may_not_change() -> None:
    fixed = {"stage", "data", "start_from", "seed", "max_samples", "mixed_precision"}
    fixed |= {"optimizer.name", "optimizer.beta1", "optimizer.ema_decay", "pair.merge"}
    fixed |= {"diffusion.snr_gamma", "unet.block_channels", "distill.steps"}
    assert fixed <= set(flatten(TrainConfig("vae", "runs/x").to_dict()))
    assert not fixed & set(MAY_CHANGE)


def test_the_page_has_the_table_of_the_code() -> None:
    section = PAGE.read_text().split("## Resume")[1].split("\n## ")[0]
    rows: dict[str, str] = {}
    for line in section.splitlines():
        if match := re.fullmatch(r"\| (`.*`) \| (.*) \|", line):
            for name in re.findall(r"`([^`]+)`", match[1]):
                rows[name] = match[2]
    assert rows == MAY_CHANGE
