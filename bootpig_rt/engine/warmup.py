"""Pictures of nobody's subject: to make ahead what a shape needs once, and to time a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image, ImageDraw

from bootpig_rt.checks import check_int
from bootpig_rt.engine.engine import Engine
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request

DISC_PROMPT = "a photo of a disc"


def warm_up(
    engine: Engine,
    request: Request,
    disc: Callable[[int], Subject],
    *,
    most_references: int,
    batch_sizes: Sequence[int],
    num_references: Sequence[int],
) -> float:
    """Draw one batch of each shape; see `Pipeline.warmup`. Returns seconds.

    Args:
        engine: With a store of its own: tables are thrown away.
        request: Of each picture, but for its subject.
        disc: A subject with so many references.
        most_references: What the pair takes.
        batch_sizes: Pictures of a batch.
        num_references: Of the subject.

    Raises:
        ParameterError: A number is out of range, or more references than the pair takes.
    """
    for size in batch_sizes:
        check_int("batch_sizes", size, 1, engine.max_batch, "raise max_batch for more")
    for count in num_references:
        check_int("num_references", count, 0, most_references, "what the pair takes")
    start = time.perf_counter()
    for count in num_references:
        subject = disc(count) if count else None
        for size in batch_sizes:
            engine.draw([replace(request, subject=subject)] * size)
    return time.perf_counter() - start


def discs(count: int) -> list[Image.Image]:
    """Reference images: grey discs."""
    images = [Image.new("RGBA", (64, 64)) for _ in range(count)]
    for number, image in enumerate(images):
        grey = 40 + number % 8 * 20
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(grey, grey, grey, 255))
    return images
