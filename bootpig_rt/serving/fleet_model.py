"""What a fleet is asked for, what was measured of its parts, and what follows by arithmetic.

Times are of one machine that was measured; nothing here knows how. What queues, batches and caches
make of them is found event by event, in `fleet_simulation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bootpig_rt.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of a fleet.

    Attributes:
        rate_per_s: Pictures a second, arriving at random.
        steps: Of a picture.
        latency_s: In which 95 of 100 pictures are to be drawn.
        subjects: That are drawn in turn at any time, equally often.
        pictures_per_subject: That a subject gets before nobody asks for it any more.

    Raises:
        ParameterError: A value is out of range.
    """

    rate_per_s: float
    steps: int
    latency_s: float
    subjects: int = 1000
    pictures_per_subject: float = 20.0

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least in (
            ("rate_per_s", 1e-6),
            ("steps", 1),
            ("latency_s", 1e-6),
            ("subjects", 1),
            ("pictures_per_subject", 1),
        ):
            if not least <= getattr(self, name) <= 1e9:
                raise ParameterError(f"{name} is {getattr(self, name)!r}, expected {least:g}..1e9")


@dataclass(frozen=True, kw_only=True)
class ReplicaFigures:
    """What was measured of a replica.

    Attributes:
        step_s: Time of a step by its pictures; between them it is interpolated.
        picture_s: Time for each picture beside its steps: its text, its decoder.
        pass_s: Time to make the reference table of a subject.
        table_bytes: Of that table.
        tables_bytes: Room on the device for tables.

    Raises:
        ParameterError: A value is out of range.
    """

    step_s: Mapping[int, float]
    picture_s: float
    pass_s: float
    table_bytes: int
    tables_bytes: int

    def __post_init__(self) -> None:
        """Check every field."""
        if not self.step_s or min(self.step_s) < 1 or min(self.step_s.values()) <= 0:
            raise ParameterError(
                f"step_s is {dict(self.step_s)!r}, expected seconds over 0 by numbers of pictures"
            )
        for name in ("picture_s", "pass_s", "table_bytes", "tables_bytes"):
            if getattr(self, name) < 0:
                raise ParameterError(f"{name} is {getattr(self, name)!r}, expected 0 or more")

    @property
    def max_batch(self) -> int:
        """The largest batch that was measured, and so the largest that is used."""
        return max(self.step_s)

    @property
    def tables(self) -> int:
        """Tables that the device has room for."""
        return self.tables_bytes // max(1, self.table_bytes)

    def step_of(self, pictures: float) -> float:
        """Seconds of a step of some pictures."""
        sizes = sorted(self.step_s)
        return float(np.interp(pictures, sizes, [self.step_s[size] for size in sizes]))

    def most_per_s(self, steps: int, hits: float) -> float:
        """Pictures a second that full batches give, where this share of the tables is there."""
        batch = self.max_batch
        each_s = steps * self.step_of(batch) / batch + self.picture_s + (1 - hits) * self.pass_s
        return 1 / each_s


@dataclass(frozen=True, kw_only=True)
class IngressFigures:
    """What was measured of the ingress, on one core.

    Attributes:
        request_s: To take a request, pass it on, and send its answer.
        encode_s: To encode its picture.
        choice_s: To choose among 1,000 replicas.
        answer_bytes: Of a picture on its way to the client.
    """

    request_s: float
    encode_s: float
    choice_s: float
    answer_bytes: int

    def cores(self, rate_per_s: float, replicas: int) -> float:
        """That a rate keeps busy."""
        return rate_per_s * (self.request_s + self.encode_s + self.choice_s * replicas / 1000)


def hits_by_subject(load: Workload, replica: ReplicaFigures, replicas: int) -> float:
    """Share of the tables that are there, where each subject has one replica."""
    kept = min(1.0, replica.tables * replicas / load.subjects)
    return float((1 - 1 / load.pictures_per_subject) * kept)


def hits_anywhere(load: Workload, replica: ReplicaFigures, replicas: int) -> float:
    """The same where each picture goes to any replica, and each of them keeps what it met last.

    A subject's first picture on a replica makes its table there. Of a least recently used cache in
    which all are asked for equally often a share is found that is its room over their number.
    """
    pictures = load.pictures_per_subject
    firsts = replicas * (1 - (1 - 1 / replicas) ** pictures)
    kept = min(1.0, replica.tables / load.subjects)
    return float(max(0.0, 1 - firsts / pictures) * kept)
