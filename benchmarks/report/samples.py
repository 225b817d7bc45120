"""Sample pictures of a pair, drawn when a report is made."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.pipeline import Pipeline, default_model

_SCENE = "in the middle of a sandy beach"
_THUMB_PX = 136
_WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("exact", "exact, 25 steps", {"num_inference_steps": 25, "reference_schedule": "exact"}),
    ("clean", "clean, 25 steps", {"num_inference_steps": 25, "reference_schedule": "clean"}),
    ("dpmpp_2m 8", "8 steps", {"num_inference_steps": 8}),
    ("dpmpp_2m 4", "4 steps", {"num_inference_steps": 4}),
)
"""Row of suites `reference` and `quality`, its name here, and what it is drawn with."""


@dataclass(frozen=True)
class Sample:
    """A subject: its reference, and a picture for each way, as PNG files.

    Attributes:
        pair: Name of the pair that drew.
        prompt: What was drawn.
        author: Of the reference.
        pngs: The reference, then a picture for each way.
    """

    pair: str
    prompt: str
    author: str
    pngs: tuple[bytes, ...]


def headers(results: Sequence[SuiteResult]) -> list[str]:
    """Names of the pictures, with the numbers that the results hold of their way."""
    rows = {
        row.name: row for each in results if each.suite in ("reference", "quality")
        for row in each.rows
    }  # fmt: skip
    found = ["reference"]
    for name, label, _ in _WAYS:
        parts = [label]
        row = rows.get(name)
        if row is not None and row.median_ms is not None:
            parts.append(f"{row.median_ms:,.0f} ms")
        for what in ("identity", "scene") if row is not None else ():
            value = row.values.get(what) if row is not None else None
            parts += [] if value is None else [f"{what} {value:.0%}"]
        found.append(", ".join(parts))
    return found


def origin(results: Sequence[SuiteResult], samples: Sequence[Sample]) -> str:
    """Who drew, and whose numbers stand over the pictures where that was another pair."""
    drew = samples[0].pair
    named = {
        str(each.settings["pair"]) for each in results
        if each.suite in ("reference", "quality") and "pair" in each.settings
    }  # fmt: skip
    words = f"Drawn by the pair {drew} when this page was made, with the numbers of each way"
    others = ", ".join(sorted(named - {drew}))
    return f"{words}; the numbers were measured on {others}." if others else f"{words}."


def draw(count: int, pair: Path | None = None) -> list[Sample]:
    """Draw `count` subjects of the packaged pair, each in all ways.

    Args:
        count: At most; there are a few.
        pair: Folder of the pair that draws; None: the packaged one.

    Raises:
        CheckpointError: This installation has no pair, or `pair` is none.
    """
    folder = default_model().parent / "subjects"
    entries = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))[:count]
    pipe = Pipeline(pair or default_model(), device="cpu")
    samples = []
    for entry in entries:
        drawing, noun = folder / entry["file"], entry["prompt_class"]
        prompt = f"{noun}, {_SCENE}"
        subject = pipe.encode_subject(drawing, noun)
        images = [pipe(prompt, subject=subject, seed=1, **way).images[0] for _, _, way in _WAYS]
        with Image.open(drawing) as opened:
            reference = opened.convert("RGBA").resize((_THUMB_PX, _THUMB_PX))
        pngs = tuple(_png(image) for image in (reference, *images))
        samples.append(Sample(pipe.spec.config.name, prompt, entry["author"], pngs))
    return samples


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
