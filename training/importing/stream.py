"""Candidates on their way to shards: made ready by processes, taken one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass

from bootpig_rt.training.captions import class_prompt
from bootpig_rt.training.importing.candidate import Candidate, Found, Place, Refused
from bootpig_rt.training.importing.fit import Fit, Fitted
from bootpig_rt.training.shards import StoredSample, encode_sample


@dataclass(frozen=True)
class Progress:
    """How far an import is: samples written, and candidates that were refused."""

    samples: int
    refused: int


@dataclass(frozen=True)
class Ready:
    """A sample as its members, and what is to be counted of it."""

    parts: dict[str, bytes]
    counts: dict[str, int]


def fit_found(fit: Fit, found: Found) -> tuple[Place, Fitted | Refused]:
    """What a process does of a candidate where others work on its pixels."""
    what = found.what
    return found.next, fit(what) if isinstance(what, Candidate) else what


def prepare(fit: Fit, found: Found) -> tuple[Place, Ready | Refused]:
    """All that a process can do of a candidate: PNG takes as long as the rest."""
    place, result = fit_found(fit, found)
    return place, encoded(result)


def encoded(result: Fitted | Refused) -> Ready | Refused:
    """Pixels as the members of a shard."""
    if isinstance(result, Refused):
        return result
    sample = StoredSample(
        0,  # the writer knows
        result.target,
        result.mask,
        list(result.references),
        result.caption,
        class_prompt(result.subject),
        {"subject": result.subject, "origin": result.name, "mask": result.mask_origin},
    )
    counts = {
        f"mask_{result.mask_origin}": 1,
        "references": len(result.references),
        "references_with_background": sum(result.is_whole),
    }
    return Ready(encode_sample(sample), counts)


Results = Generator[tuple[Place, Ready | Refused], None, None]


class Stream:
    """Samples-to-be from a place on; refusals are counted until they are taken."""

    def __init__(
        self,
        results: Results,
        start: Place,
        so_far: Progress,
        on_progress: Callable[[Progress], object],
    ) -> None:
        self._results = results
        self._waiting: tuple[Place, Ready] | None = None
        self._samples, self._refused = so_far.samples, so_far.refused
        self._on_progress = on_progress
        self.place = start
        self.rejects: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def has_more(self) -> bool:
        """Whether another sample follows; what is refused before it is counted."""
        while self._waiting is None:
            place, what = next(self._results, (None, None))
            if place is None:
                return False
            if isinstance(what, Ready):
                self._waiting = (place, what)
            elif isinstance(what, Refused):
                self.place = place
                self.rejects[what.reason] += 1
                self.examples.setdefault(what.reason, f"{what.name}: {what.detail}")
                self._refused += 1
                self._on_progress(Progress(self._samples, self._refused))
        return True

    def close(self) -> None:
        """End the processes, if there are any."""
        self._results.close()

    def take(self) -> Ready | None:
        """The next sample."""
        if not self.has_more() or self._waiting is None:
            return None
        (self.place, ready), self._waiting = self._waiting, None
        self._samples += 1
        self._on_progress(Progress(self._samples, self._refused))
        return ready
