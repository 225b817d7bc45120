"""The load: what clients ask for, and when. Open-loop: nobody waits for an answer before asking.

Arrivals are those of a Poisson process, given their number; what is asked for comes in exact shares
in a random order. So two runs differ in their order alone, and short ones can be compared.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from bootpig_rt.bundle.shipped import default_model

Shares = tuple[tuple[int, float], ...]
"""Values with the share of requests that have them."""

_SCENES = (
    "on a sandy beach", "in the snow", "on a wooden table", "in a forest", "under a night sky",
    "in front of a brick wall", "on green grass", "in a room",
)  # fmt: skip
_ZIPF = 1.1


@dataclass(frozen=True)
class Photo:
    """A reference image of somebody's subject.

    Attributes:
        png: The file.
        shows: "a photo of a frog".
    """

    png: bytes
    shows: str

    @cached_property
    def base64(self) -> str:
        """The file as text."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Ask:
    """A request of a client.

    Attributes:
        at_s: When it is sent, from the beginning of the load.
        subject: Number of its subject.
        photo: Of its subject.
        prompt: What is to be drawn.
        size_px: Side of the pictures.
        steps: T.
        images: Pictures.
        seed: Of the first picture.
    """

    at_s: float
    subject: int
    photo: Photo
    prompt: str
    size_px: int
    steps: int
    images: int
    seed: int


@dataclass(frozen=True)
class Mix:
    """What requests are like.

    Attributes:
        sizes_px: Sides of the pictures.
        steps: T.
        images: Pictures of a request.
        subjects: Subjects that are asked for again and again; the k-th one as often as 1 / k^1.1.
        new_share: Share of the requests whose subject nobody has seen.
    """

    sizes_px: Shares = ((64, 0.85), (96, 0.10), (128, 0.05))
    steps: Shares = ((8, 0.5), (12, 0.3), (25, 0.2))
    images: Shares = ((1, 0.9), (2, 0.1))
    subjects: int = 6
    new_share: float = 0.05

    @classmethod
    def of(cls, size_px: int) -> Mix:
        """The usual one, for a pair whose own pictures have such a side: some are larger."""
        sides = (size_px, 3 * size_px // 2, 2 * size_px)
        shares = (share for _, share in cls.sizes_px)
        return cls(sizes_px=tuple(zip(sides, shares, strict=True)))

    @classmethod
    def small(cls, size_px: int) -> Mix:
        """Few steps and one size, to see that all works."""
        return cls(((size_px, 1.0),), ((2, 0.5), (3, 0.5)), ((1, 1.0),), subjects=2)

    def __str__(self) -> str:
        """For people."""
        parts = [
            "/".join(f"{share / sum(x for _, x in shares):.0%} {value}" for value, share in shares)
            for shares in (self.sizes_px, self.steps, self.images)
        ]
        return (
            f"sides in px {parts[0]}, steps {parts[1]}, pictures {parts[2]}; {self.subjects} "
            f"subjects by Zipf {_ZIPF}, {self.new_share:.0%} new ones"
        )


def asks(mix: Mix, rate_per_s: float, seconds: float, *, seed: int = 0) -> list[Ask]:
    """Requests in the order of their arrival.

    Args:
        mix: What they are like.
        rate_per_s: How many a second, above 0.
        seconds: How long they come.
        seed: Of order, arrivals and new subjects.
    """
    count = max(1, round(rate_per_s * seconds))
    rng = np.random.default_rng([0x5E4E, seed])
    at_s = np.sort(rng.uniform(0, seconds, count))
    sizes, steps, images = (
        rng.permutation(apportioned(shares, count))
        for shares in (mix.sizes_px, mix.steps, mix.images)
    )
    zipf = tuple((k, (1 - mix.new_share) / (k + 1) ** _ZIPF) for k in range(mix.subjects))
    weight = sum(share for _, share in zipf) / (1 - mix.new_share)
    shares = (*((k, share / weight) for k, share in zipf), (-1, mix.new_share))
    subjects = rng.permutation(apportioned(shares, count))
    known = known_photos()
    found = []
    for n in range(count):
        subject = int(subjects[n])
        if subject < 0:
            subject = int(rng.integers(1 << 20, 1 << 62))
        photo = known[subject] if subject < len(known) else new_photo(subject)
        scene = _SCENES[int(rng.integers(len(_SCENES)))]
        found.append(
            Ask(
                float(at_s[n]), subject, photo, f"{photo.shows}, {scene}", int(sizes[n]),
                int(steps[n]), int(images[n]), int(rng.integers(1 << 31)),
            )
        )  # fmt: skip
    return found


def apportioned(shares: Sequence[tuple[int, float]], count: int) -> list[int]:
    """So many values in their shares, as exactly as whole numbers allow.

    Args:
        shares: Values with shares, which need not add up to 1.
        count: How many are wanted.
    """
    total = sum(share for _, share in shares)
    exact = [share / total * count for _, share in shares]
    numbers = [int(each) for each in exact]
    largest = sorted(range(len(shares)), key=lambda n: numbers[n] - exact[n])
    for n in largest[: count - sum(numbers)]:
        numbers[n] += 1
    return [
        value for (value, _), number in zip(shares, numbers, strict=True) for _ in range(number)
    ]


def known_photos() -> list[Photo]:
    """The packaged subjects."""
    folder = default_model().parent / "subjects"
    about = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))
    return [Photo((folder / one["file"]).read_bytes(), one["reference_prompt"]) for one in about]


def new_photo(number: int) -> Photo:
    """A drawing that differs from any with another number, a cut-out of 128 px."""
    rng = np.random.default_rng(number)
    image = Image.new("RGBA", (128, 128))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = (int(each) for each in rng.integers(8, 60, 2))
        width, height = (int(each) for each in rng.integers(24, 60, 2))
        colour = tuple(int(each) for each in rng.integers(0, 256, 3))
        draw.ellipse((left, top, left + width, top + height), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return Photo(file.getvalue(), "a photo of a toy")
