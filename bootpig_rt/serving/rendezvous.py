"""Rendezvous: which replica a subject belongs to, the same answer wherever it is asked.

Every replica has a score for every subject, and a subject prefers replicas by their scores. A
replica that leaves moves its own subjects alone, each to its next choice, and one that comes takes
an equal share from all others. Nothing is kept or agreed upon.

Load comes first where it must: a replica that has more to do than its share is passed over. The
limit follows the mean load, so when all are busy subjects stay where their tables are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_Hashes = npt.NDArray[np.uint64]


class Rendezvous:
    """Preferences of subjects among the replicas of one moment.

    Args:
        names: Of the replicas, each once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Hash the names once: a fleet changes rarely."""
        self.names = tuple(names)
        self._hashes: _Hashes = np.array([_hash(name) for name in names], dtype=np.uint64)

    def order(self, key: str) -> list[str]:
        """All replicas, the one that a key prefers most first."""
        scores = _mixed(self._hashes ^ np.uint64(_hash(key)))
        return [self.names[i] for i in np.argsort(scores, kind="stable")[::-1]]


def by_preference_and_load(
    order: Sequence[str], loads: Mapping[str, int], *, spill_over: int, imbalance: float = 1.25
) -> list[str]:
    """Replicas to try, best first.

    Args:
        order: By preference.
        loads: Requests that each has; none where it is not known.
        spill_over: Requests that a replica may always have, however idle the others are. Few: a
            step of a full batch takes several times as long as one of two pictures.
        imbalance: And beyond that, this many times the mean of all.

    Returns:
        Those under the limit by preference, then the others by load.
    """
    mean = sum(loads.get(name, 0) for name in order) / max(1, len(order))
    limit = max(spill_over, math.ceil(imbalance * mean))
    under = [name for name in order if loads.get(name, 0) < limit]
    over = [name for name in order if loads.get(name, 0) >= limit]
    return under + sorted(over, key=lambda name: loads.get(name, 0))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mixed(values: _Hashes) -> _Hashes:
    """SplitMix64's finish: every bit of a value changes half of the bits of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
