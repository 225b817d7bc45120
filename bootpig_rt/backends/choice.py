"""Which engine and precision draws a bundle on this processor: the quickest, by a margin.

Candidates come widest first. Each is timed beside the one that leads so far, and takes its place
only if it is quicker by the margin: so noise decides nothing, numbers are narrower only where that
pays, and no more than two are loaded at once. What was chosen is kept in a file with the times, and
holds for the same bundle, processor, versions and settings.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.trial import step_ms
from bootpig_rt.errors import BackendUnavailable, EngineError, OutOfDeviceMemory

logger = logging.getLogger(__name__)

ENGINE_MARGIN = 1.10
"""How much quicker another engine must be, in the same precision."""

PRECISION_MARGIN = 1.15
"""How much quicker narrower numbers must be."""

_FILE = "choice"


@dataclass(frozen=True)
class Candidate:
    """What could draw.

    Attributes:
        backend: By name.
        precision: Of its arithmetic.
    """

    backend: str
    precision: str

    def __str__(self) -> str:
        """For log lines: "openvino bfloat16"."""
        return f"{self.backend} {self.precision}"

    def margin_over(self, other: Candidate) -> float:
        """How much quicker than `other` it must be."""
        return ENGINE_MARGIN if self.precision == other.precision else PRECISION_MARGIN


class KeptFiles(Protocol):
    """Where a choice is kept; see `backends.openvino.cache.BlobCache`."""

    def read(self, name: str, more: Mapping[str, Any]) -> bytes | None:
        """What was written for these facts."""

    def write(self, name: str, more: Mapping[str, Any], blob: bytes) -> None:
        """Keep it for the next process."""


@dataclass(frozen=True)
class Choice:
    """What draws, and why.

    Attributes:
        chosen: The one.
        times_ms: Best time of a step of each candidate that was timed, beside the leader.
        is_kept: It was measured by an earlier process.
        left_out: Why others were no candidates.
    """

    chosen: Candidate
    times_ms: tuple[tuple[Candidate, float], ...]
    is_kept: bool = False
    left_out: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the log."""
        text = str(self.chosen)
        if self.times_ms:
            when = "measured earlier" if self.is_kept else "measured now"
            times = ", ".join(f"{one} {ms:.1f} ms" for one, ms in self.times_ms)
            text += f", by the time of a step ({when}): {times}"
        else:
            text += ", the only one"
        return "; ".join([text, *self.left_out])


def choose(
    candidates: Sequence[Candidate],
    load: Callable[[Candidate], Backend],
    *,
    kept: KeptFiles | None,
    facts: Mapping[str, Any],
    left_out: Sequence[str] = (),
    time_steps: Callable[[Mapping[Candidate, Backend]], dict[Candidate, float]] | None = None,
) -> tuple[Choice, Backend]:
    """Take the quickest, from what was measured earlier or by measuring now.

    Args:
        candidates: Widest first, at least one; the first is the default.
        load: Loads one.
        kept: Where choices are kept; None: nowhere.
        facts: What the choice depends on: bundle, processor, versions, settings.
        left_out: Why others are no candidates, for the log line.
        time_steps: Times some of them; `step_ms` by default.

    Returns:
        The choice and its backend, loaded.

    Raises:
        BootPIGError: What `load` raises for the first candidate.
    """
    facts = {**facts, "candidates": [str(one) for one in candidates]}
    known = None if kept is None else _parsed(kept.read(_FILE, facts), candidates)
    if known is not None:
        known = replace(known, left_out=tuple(left_out))
        logger.info("auto: %s", known.describe())
        return known, load(known.chosen)
    leader, backend = candidates[0], load(candidates[0])
    times: dict[Candidate, float] = {}
    is_whole = True
    for challenger in candidates[1:]:
        try:
            other = load(challenger)
            found = (time_steps or step_ms)({leader: backend, challenger: other})
        except (BackendUnavailable, EngineError, OutOfDeviceMemory) as error:
            logger.warning("auto: %s was not timed: %s", challenger, error)
            is_whole = False
            continue
        times.setdefault(leader, found[leader])
        # Beside another leader the machine may have been busier: ratios are what compares.
        times[challenger] = found[challenger] * times[leader] / found[leader]
        if found[leader] >= found[challenger] * challenger.margin_over(leader):
            leader, backend = challenger, other
    choice = Choice(leader, tuple(times.items()), left_out=tuple(left_out))
    if kept is not None and is_whole and times:
        kept.write(_FILE, facts, _as_json(choice))
    logger.info("auto: %s", choice.describe())
    return choice, backend


def _as_json(choice: Choice) -> bytes:
    chosen = choice.chosen
    values = {
        "backend": chosen.backend,
        "precision": chosen.precision,
        "times_ms": [[one.backend, one.precision, round(ms, 3)] for one, ms in choice.times_ms],
    }
    return json.dumps(values).encode()


def _parsed(data: bytes | None, candidates: Sequence[Candidate]) -> Choice | None:
    """A kept choice; None where there is none, or one that is not among the candidates."""
    if data is None:
        return None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        values = json.loads(data)
        chosen = Candidate(values["backend"], values["precision"])
        times = tuple(
            (Candidate(backend, precision), float(ms))
            for backend, precision, ms in values["times_ms"]
        )
        if chosen in candidates:
            return Choice(chosen, times, is_kept=True)
    logger.warning("auto: the kept choice is not usable; measured again")
    return None
