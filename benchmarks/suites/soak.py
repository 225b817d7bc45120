"""Suite `soak`: a service at 70 % of what it can do, for long, while things go wrong around it.

Clients leave, inputs are bad, the disk fills, the process is killed and started again. What must
stay as it is: memory, open files, threads, latency; and nothing may be left when the load ends.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, make_check
from bootpig_rt.benchmarks.serving.dialects import OurDialect
from bootpig_rt.benchmarks.serving.endurance import STEADY, Endurance, Record, Sample
from bootpig_rt.benchmarks.serving.load import Outcome, percentile_ms
from bootpig_rt.benchmarks.serving.process import ServerProcess
from bootpig_rt.benchmarks.serving.target import Pace, Target
from bootpig_rt.benchmarks.serving.workload import Mix
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.bundle.pair_config import read_pair_config

HELP = "a service at 70 % load for half an hour, with faults"

MINUTES, WHOLE = "minute by minute", "the second half"

_SHARE = 0.7
_SMOKE_S = 20.0
_TABLE_BYTES, _SUBJECT_BYTES = 32 << 20, 8 << 20
"""Small, so that what is kept is full, and gives way, long before the end."""


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Load a service for `settings.minutes`, and see what is left.

    Raises:
        BootPIGError: The service does not start, or draws nothing.
    """
    seconds = _SMOKE_S if settings.is_smoke else 60.0 * settings.minutes
    config = read_pair_config(settings.pair / "pair.json")
    mix = (Mix.small if settings.is_smoke else Mix.of)(config.sample_size_px)
    with tempfile.TemporaryDirectory() as folder:
        start = Starter(settings, Path(folder))
        settings.progress("how much it can do", 0, 1)
        rate_per_s = _SHARE * _capacity_per_s(start, mix, is_smoke=settings.is_smoke)
        endurance = Endurance(
            start, mix, rate_per_s=rate_per_s, seconds=seconds, progress=settings.progress
        )
        record = asyncio.run(endurance.run())
    return SuiteResult(
        "soak",
        (*minutes(record), *summary(record)),
        settings={
            "pair": config.name,
            "load": str(mix),
            "minutes": round(seconds / 60, 2),
            "requests_per_s": round(rate_per_s, 2),
        },
        checks=tuple(checks(record)),
        remarks=(remark(record),),
    )


@dataclass
class Starter:
    """Starts the service, on the same port each time."""

    settings: Settings
    folder: Path
    port: int | None = None

    def __call__(self) -> ServerProcess:
        """A process that may not be ready yet."""
        words = [
            "bootpig_rt", "serve", str(self.settings.pair), "--port", "{port}", "--threads",
            str(self.settings.threads), "--no-page", "--store", str(self.folder / "store"),
            "--subject-folder", str(self.folder / "subjects"),
            "--device-table-bytes", str(_TABLE_BYTES),
            "--tenant-subject-bytes", str(_SUBJECT_BYTES),
        ]  # fmt: skip
        log = self.folder / "service.log"
        process = ServerProcess(words, ready="/readyz", log=log, port=self.port)
        self.port = process.port
        return process


def _capacity_per_s(start: Starter, mix: Mix, *, is_smoke: bool) -> float:
    """Requests a second that it draws where far more are asked for."""
    pace = Pace(2.0, 0.5, alone=4) if is_smoke else Pace(30.0, 10.0, alone=12)
    target = Target(OurDialect({}), start=start, mix=mix, pace=pace)
    try:
        target.begin()
        alone_s = statistics.mean(target.alone())
        point = target.offer(5 / alone_s, limit_s=60.0)
    finally:
        target.stop()
    images = sum(number * share for number, share in mix.images)
    return max(point.done_per_s / images, 0.2 / alone_s)


def minutes(record: Record) -> Iterator[Row]:
    """A row for each minute; of a short run, for each tenth."""
    width_s = min(60.0, record.seconds / 10)
    for number in range(math.ceil(record.seconds / width_s)):
        start_s, end_s = number * width_s, (number + 1) * width_s
        outcomes = _between(record, start_s, end_s)
        held = [each.usage for each in record.samples if start_s <= each.at_s < end_s]
        drawn = sum(each.ask.images for each in outcomes if each.end == "done")
        yield Row(
            f"minute {end_s / 60:g}", f"{end_s / 60:.3g}", MINUTES,
            values={
                "done_per_s": drawn / width_s,
                "p50_ms": _latency_ms(outcomes, 50),
                "p99_ms": _latency_ms(outcomes, 99),
                "refused_share": _share(outcomes, "refused"),
                "broken_share": _share(outcomes, "broken"),
                "rss_bytes": _mean([each.rss_bytes for each in held]),
                "fds": _mean([each.fds for each in held]),
                "threads": _mean([each.threads for each in held]),
            },
        )  # fmt: skip


def summary(record: Record) -> Iterator[Row]:
    """What changed since the last start, and how long starts took."""
    begin_s, end_s = STEADY * record.seconds, record.seconds
    middle_s = (begin_s + end_s) / 2
    first_ms, second_ms = (
        _latency_ms(_between(record, *span), 99)
        for span in ((begin_s, middle_s), (middle_s, end_s))
    )
    drift = second_ms / first_ms - 1 if first_ms and second_ms else None
    steady = [each for each in record.samples if begin_s <= each.at_s < end_s]
    before, after = record.samples[0].usage, record.samples[-1].usage
    starts_ms = tuple(1e3 * (ready_s - gone_s) for gone_s, ready_s in record.away_s)
    yield Row("memory", "resident memory", WHOLE,
              values={"rss_bytes": float(after.rss_bytes), "slope_bytes": _slope_an_hour(steady)}
              )  # fmt: skip
    yield Row("p99", "p99 of the latency, second half to first", WHOLE,
              values={"p99_ms": second_ms, "drift_share": drift})  # fmt: skip
    yield Row("fds", "open files, quiet, after the load to before it", WHOLE,
              values={"fds": float(after.fds), "more": float(after.fds - before.fds)})  # fmt: skip
    yield Row("start", "killed, until it was ready again", WHOLE, samples_ms=starts_ms)


def checks(record: Record) -> list[Check]:
    """Nothing failed that should not have, and nothing is left."""
    failed = [
        each for each in record.outcomes
        if each.end in ("failed", "expired", "unanswered")
        or (each.end == "broken" and not _is_away(record, each))
    ]  # fmt: skip
    wrong = sum(
        count for what, count in record.counts.items()
        if what.startswith("bad inputs") and not what.endswith(("4xx", "no server"))
    )  # fmt: skip
    return [
        make_check("requests that failed", len(failed), 0.0),
        make_check("bad inputs answered with another status than 4xx", wrong, 0.0),
        make_check("under way when all was quiet", record.samples[-1].under_way, 0.0),
    ]


def remark(record: Record) -> str:
    """What was done to it."""
    done = ", ".join(f"{count:,} {what}" for what, count in sorted(record.counts.items()))
    errors = record.samples[-1].scrape.totals.get("bootpig_table_disk_errors_total", 0.0)
    return (
        f"{len(record.outcomes):,} requests; {done}. The process was killed {len(record.away_s)} "
        f"times. The disk was full twice: {errors:.0f} tables could not be written or read."
    )


def _is_away(record: Record, outcome: Outcome) -> bool:
    """Was the request under way when the process was killed, or was there none?"""
    return any(start_s - 15 <= outcome.ask.at_s <= end_s for start_s, end_s in record.away_s)


def _between(record: Record, start_s: float, end_s: float) -> list[Outcome]:
    return [each for each in record.outcomes if start_s <= each.ask.at_s < end_s]


def _latency_ms(outcomes: Sequence[Outcome], percent: float) -> float | None:
    return percentile_ms([each.latency_s for each in outcomes if each.end == "done"], percent)


def _share(outcomes: Sequence[Outcome], end: str) -> float | None:
    return _mean([each.end == end for each in outcomes])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _slope_an_hour(samples: Sequence[Sample]) -> float | None:
    """Of the resident memory, in bytes."""
    if len(samples) < 2:
        return None
    hours = np.array([each.at_s for each in samples]) / 3600
    return float(np.polyfit(hours, [float(each.usage.rss_bytes) for each in samples], 1)[0])
