"""All captions of a run: questions are asked until there are enough different ones.

Duplicates are found over all answers, in the order of their index, so that what is kept depends on
no order of work.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.errors import InputError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.bootstrap.ask import expected_per_question, make_captions
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.parse import normalised
from bootpig_rt.training.bootstrap.parts import read_items, read_rejects
from bootpig_rt.training.bootstrap.stage import Item, Runner
from bootpig_rt.training.bootstrap.work import Work

logger = logging.getLogger(__name__)

NAME = "captions"
LEAST_NEW = 0.02
"""Share of new captions in a round under which asking more is given up."""

_PAIR = 4


def ask_captions(
    config: BootstrapConfig, folder: Path, runner: Runner
) -> tuple[list[Item], dict[str, Any]]:
    """Captions without duplicates, `captions.count` at most, numbered from 0.

    Args:
        config: The run's.
        folder: Where answers are kept: a question that was answered is not asked again.
        runner: Who asks.

    Returns:
        The captions, and the stage's record: `items`, `rejects` by reason.

    Raises:
        InputError: No answer holds a caption.
    """
    settings = config.captions
    work = Work(folder, partial(make_captions, config), runner, NAME)
    kept: list[Item] = []
    rejects: Counter[str] = Counter()
    seen: set[str] = set()
    asked = 0
    while len(kept) < settings.count:
        missing = settings.count - len(kept)
        count = 1 if settings.source == "file" else -(-missing // expected_per_question(config))
        numbers = range(asked, asked + count)
        work.run(dict.fromkeys(numbers, 1), lambda number: [Item(number)])
        before = len(kept)
        for number in numbers:
            rejects.update(work.records[number]["rejects"])
            for item in read_items([folder], number):
                key = normalised(item.caption)
                if key in seen:
                    rejects["duplicate"] += 1
                elif len(kept) < settings.count:
                    seen.add(key)
                    kept.append(item)
        asked += count
        new = len(kept) - before
        if not kept:
            raise InputError(_nothing(folder, numbers, rejects))
        if settings.source == "file" or new < LEAST_NEW * count * expected_per_question(config):
            break
    if len(kept) < settings.count:
        logger.warning(
            "%d different captions in place of %d: %s",
            len(kept),
            settings.count,
            "the file has no more" if settings.source == "file" else "answers repeat themselves",
        )
    numbered = [replace(item, index=index) for index, item in enumerate(kept)]
    atomic_write_text(folder / "captions.txt", "".join(f"{item.caption}\n" for item in numbered))
    refused = [reject for number in range(asked) for reject in read_rejects(folder, number)]
    text = "".join(f"{reject.reason}: {reject.detail}\n" for reject in refused)
    atomic_write_text(folder / "rejected.txt", text)
    return numbered, {"items": len(numbered), "rejects": dict(sorted(rejects.items()))}


def items_of(config: BootstrapConfig, captions: list[Item]) -> Iterator[Item]:
    """What is to be drawn: each caption as often as the settings say, some of them as pairs."""
    for number, caption in enumerate(captions):
        for copy in range(config.pictures.per_caption):
            index = number * config.pictures.per_caption + copy
            rng = np.random.default_rng((config.seed, index, _PAIR))
            yield replace(caption, index=index, is_pair=bool(rng.random() < config.pairs.share))


def _nothing(folder: Path, numbers: range, rejects: Counter[str]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in sorted(rejects.items()))
    first = next(reject.detail for number in numbers for reject in read_rejects(folder, number))
    return (
        f"no caption in all answers ({counts}; the first: {first}); expected lines like 'a photo "
        f"of a dog, on a beach': check captions.source and its model, then delete {folder}"
    )
