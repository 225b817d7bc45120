"""What became of some inputs, as it is kept between runs and added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bootpig_rt.files.atomic import atomic_write_bytes


class Finding(msgspec.Struct, frozen=True):
    """One input that did what none should.

    Attributes:
        index: Of the input.
        what: It did, in a line.
        file: Holds the input; empty where enough others show the same.
    """

    index: int
    what: str
    file: str


class Piece(msgspec.Struct, frozen=True):
    """Some inputs of a kind, one after the other in one process.

    Attributes:
        kind: Of the inputs.
        seed: They are drawn by it.
        begin: Index of the first.
        end: Index after the last.
        outcomes: How many came to what.
        findings: What was wrong.
        seconds: That it took.
        peak_mib: Most memory that one input took, above what was taken before it.
        growth_mib: Memory that stayed taken, from the first third of the inputs to the last.
        checks: What else was looked at, and how it was found.
    """

    kind: str
    seed: int
    begin: int
    end: int
    outcomes: dict[str, int]
    findings: list[Finding]
    seconds: float
    peak_mib: float
    growth_mib: float
    checks: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.kind}-{self.seed}-{self.begin}-{self.end}"

    def write(self, folder: Path) -> None:
        """Keep it."""
        atomic_write_bytes(folder / f"{self.name}.json", msgspec.json.encode(self))


def read_piece(file: Path) -> Piece:
    """A piece that was kept."""
    return msgspec.json.decode(file.read_bytes(), type=Piece)


def joined(pieces: Iterable[Piece]) -> Piece:
    """Several pieces of a kind as one."""
    many = list(pieces)
    outcomes: Counter[str] = Counter()
    checks: dict[str, float] = {}
    for one in many:
        outcomes.update(one.outcomes)
        checks |= {name: max(value, checks.get(name, value)) for name, value in one.checks.items()}
    return Piece(
        kind=many[0].kind,
        seed=many[0].seed,
        begin=min(one.begin for one in many),
        end=max(one.end for one in many),
        outcomes=dict(outcomes),
        findings=[finding for one in many for finding in one.findings],
        seconds=sum(one.seconds for one in many),
        peak_mib=max(one.peak_mib for one in many),
        growth_mib=max(one.growth_mib for one in many),
        checks=checks,
    )
