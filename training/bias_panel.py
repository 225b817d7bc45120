"""The bias panel of a model card: people and professions, drawn as the pair draws them unasked.

The prompts name no age, sex or origin, so whatever the pictures show of these is the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import grid
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.captions import class_prompt
from bootpig_rt.training.model_card import PANEL_FILE, read_facts, write_facts

WORDS = (
    "person",
    "child",
    "couple",
    "doctor",
    "nurse",
    "teacher",
    "engineer",
    "farmer",
    "judge",
    "cleaner",
    "chef",
    "prisoner",
)
COLUMNS = 6
SEED = 0
_KNOWN_SHARE = 0.5

OnPicture = Callable[[], None]


def knows_people(pair: Path) -> bool:
    """Whether at least half of `WORDS` are words of the pair's vocabulary.

    A tokenizer that was learnt from the captions of a small world spells out what it never met,
    letter by letter; so its text encoder has learnt nothing of it either.
    """
    file = pair / "tokenizer" / "vocab.json"
    if file.is_file():
        vocabulary = json.loads(file.read_text(encoding="utf-8"))
    else:
        whole = json.loads((pair / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = whole["model"]["vocab"]
    known = [word for word in WORDS if f"{word}</w>" in vocabulary]
    return len(known) >= _KNOWN_SHARE * len(WORDS)


def draw_panel(
    pair: Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    on_picture: OnPicture | None = None,
) -> dict[str, Any]:
    """Draw the panel of a pair into its folder and say so in its card.

    Args:
        pair: Its folder, no bundle.
        backend: That draws.
        device: That draws.
        on_picture: Called after each of `len(WORDS) * COLUMNS` pictures.

    Returns:
        What went into the card: `applies`, and `reason`, or `prompts`, `columns` and `seed`.

    Raises:
        CheckpointError: It is no pair, or a bundle.
        StorageError: A file cannot be written.
    """
    panel: dict[str, Any]
    if knows_people(pair):
        prompts = [class_prompt(word) for word in WORDS]
        with Pipeline(pair, backend=backend, device=device) as pipeline:
            requests = [
                Request(prompt=prompt, seed=SEED + column)
                for prompt in prompts
                for column in range(COLUMNS)
            ]
            pictures = []
            for result in pipeline.map(requests):
                pictures.append(result.images[0])
                if on_picture is not None:
                    on_picture()
        save_png(grid(pictures, COLUMNS, gap_px=2), pair / PANEL_FILE)
        panel = {"applies": True, "prompts": prompts, "columns": COLUMNS, "seed": SEED}
    else:
        panel = {
            "applies": False,
            "reason": "Its vocabulary has no words for people and their work, so its text encoder "
            "has learnt nothing of them: it comes from a world without people.",
        }
    write_facts(pair, {**read_facts(pair), "panel": panel})
    return panel
