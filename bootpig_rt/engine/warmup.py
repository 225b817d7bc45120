"""What a warm-up draws: requests of given shapes, whose pictures nobody looks at."""

from __future__ import annotations

from PIL import Image, ImageDraw

from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request

PROMPT = "a photo of a disc"


def discs(count: int) -> list[Image.Image]:
    """Reference images: grey discs, cut out, so that no background remover is asked."""
    images = [Image.new("RGBA", (64, 64)) for _ in range(count)]
    for number, image in enumerate(images):
        grey = 40 + number % 8 * 20
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(grey, grey, grey, 255))
    return images


def requests_of(batch_size: int, subject: Subject | None) -> list[Request]:
    """Requests that make up one batch."""
    return [Request(prompt=PROMPT, subject=subject, seed=seed) for seed in range(batch_size)]
