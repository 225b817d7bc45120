"""Which pictures there are: subject, prompt and number; their seeds, files and parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import ParameterError
from bootpig_rt.training.evaluation.dreambench.data import DreamBench

PICTURES = "pictures"


@dataclass(frozen=True)
class BenchShot:
    """One picture to draw; `subject` and `prompt` are places in the benchmark's lists."""

    subject: int
    prompt: int
    number: int


@dataclass(frozen=True)
class Part:
    """A share of the pictures, for one of several machines: `number` from 1 to `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "2/4".

        Raises:
            ParameterError: Anything else.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise ParameterError(
                f"--part is {text!r}, expected K/N with 1 <= K <= N, such as 1/4 on the first of "
                "four machines"
            )
        return cls(number, count)


def all_shots(bench: DreamBench, per_prompt: int) -> list[BenchShot]:
    """All pictures, those of a subject together."""
    return [
        BenchShot(s, p, number)
        for s, subject in enumerate(bench.subjects)
        for p in range(len(subject.prompts))
        for number in range(per_prompt)
    ]


def shots_of_part(shots: Sequence[BenchShot], part: Part) -> list[BenchShot]:
    """An unbroken run of the pictures, so that few subjects are on two machines."""
    start, end = (len(shots) * k // part.count for k in (part.number - 1, part.number))
    return list(shots[start:end])


def seed_of(bench: DreamBench, shot: BenchShot, seed: int) -> int:
    """Of a picture: fixed by names, so that it does not depend on what else is drawn."""
    name = bench.subjects[shot.subject].name
    words = f"dreambench {seed} {name} {shot.prompt} {shot.number}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "little")


def picture_path(folder: Path, bench: DreamBench, shot: BenchShot) -> Path:
    """Where a picture is kept: `pictures/dog2/07-3.png`, prompt 7 and picture 3."""
    name = bench.subjects[shot.subject].name
    return folder / PICTURES / name / f"{shot.prompt:02}-{shot.number}.png"
