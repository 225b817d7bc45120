"""Ways to do the same, made where that is possible, compared, and timed in turn.

One timer for all suites and devices: round by round, each way beside runs of a baseline.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.result import Check, Row, make_check
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.stats import median_ratio
from bootpig_rt.errors import BackendUnavailable, BootPIGError, OutOfDeviceMemory, ParameterError


class Unavailable(BootPIGError):
    """A way cannot run here; the message says why."""


@dataclass(frozen=True)
class Ready:
    """A way that was made.

    Attributes:
        run: Does it once, and returns when it is done. What it returns, where that is a number, is
            its own time in ms; otherwise the clock's is taken.
        prepare: Called before each run, ahead of the clock.
        difference: Measures how far it is from what it is to give; None: nothing to compare.
        limit: The largest difference that is right.
        values: Of its row.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    difference: Callable[[], float] | None = None
    limit: float = 0.0
    values: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A named way to do what the others of its table do.

    Attributes:
        name: Of its row.
        label: Of its row.
        make: Loads what it needs. Raises `Unavailable` where it cannot run here.
        pictures: How many it draws: times are per picture; a share of one is allowed.
        group: Of its row.
        notes: Of its row.
    """

    name: str
    label: str
    make: Callable[[], Ready]
    pictures: float = 1
    group: str = ""
    notes: str = ""

    @classmethod
    def of(cls, name: str, label: str, run: Callable[[], object], **others: object) -> Way:
        """One that needs nothing to be made."""
        return cls(name, label, lambda: Ready(run), **others)  # type: ignore[arg-type]


class Journal:
    """Rounds that were measured, a line each: what an interrupted run goes on from.

    Args:
        path: Of the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    @classmethod
    def of(cls, suite: str, settings: Settings) -> Journal:
        """That of a suite: another one for other settings, another commit or machine.

        Nothing is kept of smoke runs, nor of a checkout with changes: its code has no name.
        """
        commit = machine.commit()
        if settings.is_smoke or not commit or commit.endswith("-dirty"):
            return cls()
        key = f"{suite} {settings!r} {commit} {machine.processor()} {machine.versions()}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return cls(settings.work / "rounds" / f"{suite}-{digest}.jsonl")

    def rounds(self, part: str) -> list[dict[str, list[float]]]:
        """Of a part of the suite: by name of a way its time and its baseline's; may be cut off."""
        if self.path is None or not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # empty, or cut off while it was written
                continue
            if entry["part"] == part:
                found.append(entry["times"])
        return found

    def add(self, part: str, times: dict[str, list[float]]) -> None:
        """Keep a round."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # A line of its own, whatever an interruption left behind.
                file.write("\n" + json.dumps({"part": part, "times": times}) + "\n")

    def forget(self) -> None:
        """The suite is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Bench:
    """Makes, compares and times the ways of a suite.

    Attributes:
        settings: Of the run.
        journal: Rounds of an interrupted run.
        names: Of all ways that were offered.
        checks: What the comparisons found so far.
    """

    def __init__(self, settings: Settings, journal: Journal | None = None) -> None:
        self.settings = settings
        self.journal = Journal() if journal is None else journal
        self.names: list[str] = []
        self.checks: list[Check] = []
        self._ready: dict[str, Ready | Row] = {}

    def rows(
        self,
        part: str,
        ways: Sequence[Way],
        *,
        baseline: str | None = None,
        rounds: int | None = None,
        warmups: int = 1,
        wants_all: bool = False,
    ) -> list[Row]:
        """Make the ways that `--only` asks for, compare them, and time those that are right.

        Args:
            part: Name of this table, for the journal.
            ways: What is compared.
            baseline: Name of the way that others are timed beside; it stays with `--only`.
            rounds: Those of the settings by default.
            warmups: Rounds that are dropped.
            wants_all: Whatever `--only` says.

        Returns:
            A row for each way that is wanted; one that cannot run or is wrong says why.
        """
        self.names += [way.name for way in ways]
        wanted = [way for way in ways if wants_all or self.settings.is_wanted(way.name)]
        if wanted:
            wanted = [way for way in ways if way in wanted or way.name == baseline]
        found = {way.name: self._prepared(way) for way in wanted}
        ready = {name: each for name, each in found.items() if isinstance(each, Ready)}
        if baseline is not None and wanted and baseline not in ready:
            row = found.get(baseline)
            reason = row.status if isinstance(row, Row) else "there is no such row"
            raise ParameterError(f"the baseline {baseline!r} cannot be timed: {reason}")
        timed = time_ways(
            [(way, ready[way.name]) for way in wanted if way.name in ready],
            self.settings.rounds if rounds is None else rounds,
            baseline=baseline,
            warmups=warmups,
            settings=self.settings,
            journal=self.journal,
            part=part,
        )
        return [timed.get(way.name) or _row_of(found[way.name]) for way in wanted]

    def forget(self) -> None:
        """Let go of all ways: those of the next table may need their memory."""
        self._ready.clear()
        gc.collect()
        if self.settings.is_cuda:
            import torch

            torch.cuda.empty_cache()

    def _prepared(self, way: Way) -> Ready | Row:
        """The way made and compared, once; or a row that says why not."""
        if way.name not in self._ready:
            self.settings.progress(f"preparing {way.name}", 0, 1)
            self._ready[way.name] = self._compared(way)
        return self._ready[way.name]

    def _try(self, ready: Ready) -> None:
        """Run once ahead of all rounds, so that a way that fails does not end them."""
        if ready.prepare is not None:
            ready.prepare()
        ready.run()

    def _compared(self, way: Way) -> Ready | Row:
        blank = Row(way.name, way.label, way.group, notes=way.notes)
        try:
            ready = way.make()
            if ready.difference is None:
                self._try(ready)
                return ready
            check = make_check(way.name, ready.difference(), ready.limit)
        except Exception as error:  # of one way: the others go on
            return msgspec.structs.replace(blank, status=why_not(error))
        self.checks.append(check)
        if check.is_ok:
            return ready
        status = f"wrong: differs by {check.value}, expected at most {check.limit:g}"
        return msgspec.structs.replace(blank, status=status)


def _row_of(found: Ready | Row) -> Row:
    assert isinstance(found, Row)
    return found


def why_not(error: Exception) -> str:
    """Why a way has no time, in a line."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    if isinstance(error, (Unavailable, BackendUnavailable)):
        return f"not available: {first}"
    if isinstance(error, OutOfDeviceMemory) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {first}"
    return f"failed: {type(error).__name__}: {first}"


def time_ways(
    ways: Sequence[tuple[Way, Ready]],
    rounds: int,
    *,
    baseline: str | None = None,
    warmups: int = 1,
    settings: Settings | None = None,
    journal: Journal | None = None,
    part: str = "",
    seed: int = 0,
) -> dict[str, Row]:
    """Time all ways, each once a round, in a new order each round.

    No way always follows the same one. With a `baseline` each run of another way lies between two
    runs of it: B a B c B b B. A slow spell of the machine is often shorter than a round, but seldom
    shorter than such a triple, so it hits both sides of a ratio.

    Args:
        ways: What is timed; names are unique.
        rounds: How often, 1 and up.
        baseline: Name of the way that the others are compared with.
        warmups: Rounds that are dropped.
        settings: Device, and who is told after each round.
        journal: Rounds that are there already, and gets the new ones.
        part: Name of this table in the journal.
        seed: Of the orders.

    Returns:
        Rows by name. With a `baseline` they hold `baseline_ms`, the geometric mean of the runs
        before and after each of their own, and the ratio: the median of `baseline_ms` over
        `samples_ms`. The baseline itself has one sample a round.

    Raises:
        ValueError: Two ways of one name, or no way of the baseline's name.
    """
    names = [way.name for way, _ in ways]
    if len(set(names)) != len(names):
        raise ValueError("two ways have the same name")
    if baseline is not None and ways and baseline not in names:
        raise ValueError(f"no way has the name {baseline!r} of the baseline")
    settings = Settings(Path()) if settings is None else settings
    journal = Journal() if journal is None else journal
    done = [each for each in journal.rounds(part) if set(each) == set(names)][:rounds]
    by_name = {way.name: (way, ready) for way, ready in ways}
    others = [name for name in names if name != baseline]
    order = np.random.default_rng([seed, len(done)])
    left = rounds - len(done) if ways else 0
    clock = _Clock(settings.device)
    with _no_collections() as collect:
        for index in range(warmups + left if left else 0):
            collect()
            times: dict[str, list[float]] = {}
            before = clock.ms(*by_name[baseline]) if baseline is not None else None
            if baseline is not None and before is not None:
                times[baseline] = [before]
            for place in order.permutation(len(others)):
                found = clock.ms(*by_name[others[place]])
                times[others[place]] = [found]
                if baseline is not None and before is not None:
                    after = clock.ms(*by_name[baseline])
                    times[others[place]].append(math.sqrt(before * after))
                    before = after
            if index >= warmups:
                done.append(times)
                journal.add(part, times)
            settings.progress(f"rounds of {part}", len(done), rounds)
    return {way.name: _row(way, ready, done, baseline) for way, ready in ways}


def _row(
    way: Way, ready: Ready, rounds: Sequence[dict[str, list[float]]], baseline: str | None
) -> Row:
    samples = tuple(each[way.name][0] for each in rounds)
    pairs: tuple[float, ...] = ()
    ratio = None
    if baseline is not None and samples:
        pairs = tuple(each[way.name][-1] for each in rounds)
        ratio = median_ratio(baseline, pairs, samples)
    return Row(
        way.name,
        way.label,
        way.group,
        samples_ms=samples,
        baseline_ms=() if way.name == baseline else pairs,
        ratio=ratio,
        values=ready.values,
        notes=way.notes,
    )


class _Clock:
    """The host's clock; on a GPU it waits for the device at both ends."""

    def __init__(self, device: str) -> None:
        self._wait: Callable[[], object] = lambda: None
        if device.startswith("cuda"):
            import torch

            self._wait = torch.cuda.synchronize

    def ms(self, way: Way, ready: Ready) -> float:
        """One run, in milliseconds per picture."""
        if ready.prepare is not None:
            ready.prepare()
        self._wait()
        start = time.perf_counter()
        own = ready.run()
        self._wait()
        elapsed = 1e3 * (time.perf_counter() - start)
        return (own if isinstance(own, float) else elapsed) / way.pictures


@contextmanager
def _no_collections() -> Iterator[Callable[[], object]]:
    """No garbage is collected but where the function is called: it would fall into a timed run.

    What is there already is left out, since to go through all modules takes longer than many ways.
    Where somebody else had frozen what was there, it stays frozen: nothing tells theirs from ours.
    """
    is_ours = not gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()
        if is_ours:
            gc.unfreeze()
