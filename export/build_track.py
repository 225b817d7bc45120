"""How far a build is, from what its parts tell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from bootpig_rt.export.build_options import BuildOptions

if TYPE_CHECKING:
    pass
from bootpig_rt.export.build_options import graph_names

BuildProgress: TypeAlias = Callable[[str, float], None]
"""(what is being done, share of the whole build done 0..1) -> None; may raise to cancel."""

# Rough shares of a build's time, for the progress bar alone.
_COST = {"load": 2.0, "graph": 2.0, "engine": 8.0, "torch": 4.0, "compare": 3.0, "int8": 40.0}


class Track:
    """Adds up what parts of a build tell about themselves."""

    def __init__(self, options: BuildOptions, progress: BuildProgress | None) -> None:
        names = graph_names(options)
        engines = len(names) if options.is_engine else 0
        self._total = sum(_COST[kind] for kind in ("load", "torch", "compare"))
        self._total += len(names) * _COST["graph"] + engines * _COST["engine"]
        self._total += _COST["int8"] + _COST["compare"] if options.int8 else 0.0
        self._done = 0.0
        self._progress = progress

    @contextlib.contextmanager
    def part(self, kind: str, what: str) -> Iterator[Callable[[str, float], None]]:
        """One part, while a `with` block runs, which gets what to tell its progress with."""
        done, cost = self._done, _COST[kind]
        self._tell(what, done)
        yield lambda inside, share: self._tell(f"{what}: {inside}", done + cost * share)
        self._done += cost

    def end(self) -> None:
        """All is done."""
        self._tell("done", self._total)

    def _tell(self, what: str, done: float) -> None:
        if self._progress is not None:
            self._progress(what, min(1.0, done / self._total))
