"""Suite `serving`: pictures that come in time, of servers on the same pair, cores and load.

A server's goodput is what it draws within a limit: five times what the first of them takes for a
request when nobody else asks. Each is offered more and more until it does no better; then all take
turns at the rate that was best for each, and ours at ten times that as well.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, make_check, ratio_of_rows
from bootpig_rt.benchmarks.serving.contenders import Contender, Contenders
from bootpig_rt.benchmarks.serving.dialects import OurDialect
from bootpig_rt.benchmarks.serving.ladder import best, climb
from bootpig_rt.benchmarks.serving.load import Point
from bootpig_rt.benchmarks.serving.target import Pace, Target
from bootpig_rt.benchmarks.serving.workload import Mix, asks
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Unavailable, Way
from bootpig_rt.bundle.pair_config import read_pair_config

HELP = "goodput and latency of servers under an open-loop load, beside named ones"

PEAK = "at the rate that is best for each"
SWEEP = "offered more and more: "
KEY = "BOOTPIG_RT_API_KEY"
"""Variable with the key of the service that `--url` names."""

_OURS, _OVERLOAD, _LITSERVE = "ours", "ours_overload", "litserve"
_TIMES_ALONE, _TIMES_PEAK = 5, 10
_LEAST_RATIO, _LEAST_AT_OVERLOAD = 4.0, 0.9
_SIZE_PX = 64
_NOT_SHOWN = ("client_", "done_")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        pace: Of a load.
        rates: That a server is offered at most, to find the best.
    """

    pace: Pace
    rates: int = 24


FULL = Plan(Pace(seconds=24.0, skip_s=6.0, alone=20))
SMOKE = Plan(Pace(seconds=2.0, skip_s=0.5, alone=2), rates=2)


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Measure all servers, or the one that runs at `settings.url`.

    Raises:
        BootPIGError: The server that others are compared with does not start, or does not draw.
        ParameterError: `--only` matches no row.
    """
    bench = Bench(settings, journal)
    with ExitStack() as stack:
        contest = Contest(settings, journal, stack)
        ways = list(contest.ways())
        rows = bench.rows(PEAK, ways, baseline=ways[0].name, warmups=0)
    bench.settings.check_only(bench.names)
    return SuiteResult(
        "serving",
        (*map(contest.with_points, rows), *contest.sweep_rows()),
        settings={
            "pair": contest.name,
            "load": str(contest.mix),
            "limit_ms": round(1e3 * contest.limit_s),
            "seconds_a_load": contest.plan.pace.seconds,
        },
        checks=(*bench.checks, *contest.checks()),
        remarks=tuple(contest.remarks(rows)),
    )


class Contest:
    """The servers, the limit, and what each did so far.

    Args:
        settings: Of the run.
        journal: Keeps the limit and the sweeps as well as the rounds.
        stack: Ends the servers.
    """

    def __init__(self, settings: Settings, journal: Journal, stack: ExitStack) -> None:
        self._settings, self._journal, self._stack = settings, journal, stack
        self.name, size_px = settings.url, _SIZE_PX
        if not settings.url:
            config = read_pair_config(settings.pair / "pair.json")
            self.name, size_px = config.name, config.sample_size_px
        self.plan, self.mix = (
            (SMOKE, Mix.small(size_px)) if settings.is_smoke else (FULL, Mix.of(size_px))
        )
        self.limit_s = 0.0
        self._targets: dict[str, Target] = {}
        self._sweeps: dict[str, list[tuple[float, Point]]] = {}
        self._points: dict[str, list[Point]] = {}

    def ways(self) -> Iterator[Way]:
        """All servers; the first is what others are compared with."""
        if self._settings.url:
            yield self._way(Contender(_OURS, "the service", self._remote))
        else:
            logs = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            made = Contenders(self._settings, self.mix, self.plan.pace, logs, self._stack)
            yield from map(self._way, made.all())
        label = f"{_OURS}, at {_TIMES_PEAK} times that rate"
        yield Way(_OVERLOAD, label, self._overload, group=PEAK)

    def _way(self, contender: Contender) -> Way:
        return Way(contender.name, contender.label, partial(self._made, contender), group=PEAK)

    def _made(self, contender: Contender) -> Ready:
        """Start a server, compare its pictures with those of the first, find its best rate."""
        target = contender.begin(self.limit_s or None)
        self._targets[contender.name] = target
        alone_s = statistics.mean(target.alone())
        if not self.limit_s:
            self.limit_s = _TIMES_ALONE * alone_s
            kept = self._journal.rounds("limit")
            if kept:
                self.limit_s = kept[0]["s"][0]
            else:
                self._journal.add("limit", {"s": [self.limit_s]})
        off = self._difference(target)
        if not off:
            self._sweeps[contender.name] = self._sweep(contender.name, 0.5 / alone_s)
        run = partial(self._visit, contender.name, contender.name, 1.0)
        return Ready(run, difference=lambda: off, values={"alone_ms": 1e3 * alone_s})

    def _overload(self) -> Ready:
        if _OURS not in self._sweeps:
            raise Unavailable("ours was not measured")
        return Ready(partial(self._visit, _OVERLOAD, _OURS, _TIMES_PEAK), difference=lambda: 0.0)

    def _visit(self, row: str, server: str, times: float) -> float:
        """Ms a picture that came in time, with the best rate of a server or some times that."""
        rate, _ = best(self._sweeps[server])
        point = self._targets[server].offer(times * rate, self.limit_s)
        self._points.setdefault(row, []).append(point)
        # None in time counts as half a picture: a ratio needs a number.
        return 1e3 / max(point.goodput_per_s, 0.5 / self.plan.pace.seconds)

    def _difference(self, target: Target) -> float:
        """Values of pictures that differ by more than rounding from those of the first server."""
        first, *others = self._targets.values()
        if not others:
            return 0.0
        sides = [size for size, _ in self.mix.sizes_px]
        chosen = [
            replace(asks(self.mix, 1, 1, seed=n)[0], size_px=side, steps=4, images=2)
            for n, side in enumerate(sides)
        ]
        off = [
            int(np.count_nonzero(np.abs(a - b) > 1))
            for a, b in zip(first.pictures(chosen), target.pictures(chosen), strict=True)
        ]
        return float(sum(off))

    def _sweep(self, name: str, start_per_s: float) -> list[tuple[float, Point]]:
        part = f"sweep {name}"
        found = [_from_journal(entry) for entry in self._journal.rounds(part)]
        if not found:
            found = climb(partial(self._step, name), start_per_s, most=self.plan.rates)
            for rate, point in found:
                self._journal.add(part, _to_journal(rate, point))
        return found

    def _step(self, name: str, rate_per_s: float) -> Point:
        self._settings.progress(f"{name} with {rate_per_s:.2g} requests a second", 0, 1)
        return self._targets[name].offer(rate_per_s, self.limit_s)

    def _remote(self, limit_s: float | None) -> Target:
        """The service that runs already, with what it can draw of the usual load."""
        target = Target(
            OurDialect({}), url=self._settings.url, key=os.environ.get(KEY, ""), mix=self.mix,
            pace=self.plan.pace,
        )  # fmt: skip
        target.narrow()
        self.mix = target.mix
        target.begin()
        return target

    def with_points(self, row: Row) -> Row:
        """A row with the medians of its rounds."""
        points = [_shown(point) for point in self._points.get(row.name, ())]
        columns = {name: [each[name] for each in points] for name in (points or [{}])[0]}
        return row.with_values(**{name: _median(column) for name, column in columns.items()})

    def sweep_rows(self) -> Iterator[Row]:
        """A row for each rate that was offered."""
        for name, points in self._sweeps.items():
            for rate, point in points:
                yield Row(
                    f"{name} {rate:.3g}", f"{rate:.3g} requests a second", SWEEP + name,
                    values=_shown(point),
                )  # fmt: skip

    def checks(self) -> list[Check]:
        """Nothing that ours accepted is lost at ten times its best rate."""
        lost = sum(point.lost for point in self._points.get(_OVERLOAD, ()))
        return [make_check("accepted and lost by ours under overload", lost, 0.0)]

    def remarks(self, rows: Sequence[Row]) -> Iterator[str]:
        """What the figures say, beside the targets, and what the client took."""
        points = [point for _, point in chain.from_iterable(self._sweeps.values())]
        points += chain.from_iterable(self._points.values())
        share = max((point.client_share for point in points), default=0.0)
        late_ms = max((point.client_late_ms for point in points), default=0.0)
        yield (
            f"In time is within {self.limit_s:.2f} s: {_TIMES_ALONE} times what the first takes "
            f"for a request when nobody else asks. The client took {share:.0%} of a core at most, "
            f"and no request was sent more than {late_ms:.0f} ms late."
        )
        by_name = {row.name: row for row in rows}
        ours, overload = by_name.get(_OURS), by_name.get(_OVERLOAD)
        if ours is not None and ours.ratio is not None and ours.ratio.to != _OURS:
            yield (
                f"Goodput of ours is {ours.ratio} that of the first, each at its best rate; the "
                f"target is {_LEAST_RATIO:g}."
            )
        litserve = by_name.get(_LITSERVE)
        beside = None if ours is None or litserve is None else ratio_of_rows(ours, litserve)
        if beside is not None:
            yield f"It is {beside} that of the published way in LitServe, which batches."
        kept = None if ours is None or overload is None else ratio_of_rows(overload, ours)
        if kept is not None:
            lost = sum(point.lost for point in self._points.get(_OVERLOAD, ()))
            yield (
                f"At {_TIMES_PEAK} times its best rate ours keeps {kept.value:.2f} of its goodput "
                f"({kept.low:.2f} to {kept.high:.2f}), the target is {_LEAST_AT_OVERLOAD:g}; of "
                f"what it accepted it lost {lost:.0f}."
            )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shown(point: Point) -> dict[str, float | None]:
    values = point.values()
    return {name: value for name, value in values.items() if not name.startswith(_NOT_SHOWN)}


def _to_journal(rate: float, point: Point) -> dict[str, list[float]]:
    known = {name: [value] for name, value in point.values().items() if value is not None}
    return {"rate": [rate], **known}


def _from_journal(entry: Mapping[str, Sequence[float]]) -> tuple[float, Point]:
    values = {each.name: entry.get(each.name, [None])[0] for each in fields(Point)}
    return entry["rate"][0], msgspec.convert(values, Point)
