"""A service under load for long, while things go wrong around it: what was seen of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from bootpig_rt.benchmarks.serving.client import Answer, Client
from bootpig_rt.benchmarks.serving.dialects import OurDialect
from bootpig_rt.benchmarks.serving.faults import fill_disk, leave, send_bad
from bootpig_rt.benchmarks.serving.load import Outcome, offer
from bootpig_rt.benchmarks.serving.metrics import Scrape
from bootpig_rt.benchmarks.serving.process import ServerProcess, Usage
from bootpig_rt.benchmarks.serving.workload import Ask, Mix, asks
from bootpig_rt.benchmarks.settings import Progress

KILLS = (0.08, 0.16)
DISK_FULL = ((0.40, 0.45), (0.75, 0.80))
STEADY = 0.5
"""Shares of the time: when the process is killed; when the disk is full; and from when on nothing
is started any more, and what fills up is full: jobs that ended are kept for ten minutes."""

_LEAVE_SHARE = 0.1
_BAD_EVERY_S = 2.0
_SAMPLE_S = 2.0
_PATIENCE_S = 60.0
_QUIET_S = 15.0
_GAUGES = ("bootpig_queue_pictures", "bootpig_running_pictures")
_OPEN = "bootpig_http_requests_in_progress"


@dataclass(frozen=True)
class Sample:
    """What a service held at a moment.

    Attributes:
        at_s: From the beginning of the load.
        usage: Of its processes.
        scrape: Of its metrics.
    """

    at_s: float
    usage: Usage
    scrape: Scrape

    @property
    def under_way(self) -> float:
        """Pictures and requests that have not ended, but for the request that asks."""
        totals = self.scrape.totals
        pictures = sum(totals.get(name, 0.0) for name in _GAUGES)
        return pictures + max(0.0, totals.get(_OPEN, 0.0) - 1)


@dataclass
class Record:
    """What was seen.

    Attributes:
        seconds: How long requests came.
        outcomes: Of all requests, in the order of their arrival.
        samples: The first before the load, the last after it, when all was quiet.
        away_s: From each kill to when the service was ready again.
        counts: What else was done, and how it was answered.
    """

    seconds: float
    outcomes: tuple[Outcome, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    away_s: list[tuple[float, float]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Endurance:
    """One run.

    Args:
        start: Starts the service, on the same port each time.
        mix: What is asked for.
        rate_per_s: Of the requests.
        seconds: How long they come.
        progress: Told the minutes.
    """

    def __init__(
        self,
        start: Callable[[], ServerProcess],
        mix: Mix,
        *,
        rate_per_s: float,
        seconds: float,
        progress: Progress,
    ) -> None:
        self._start, self._mix, self._progress = start, mix, progress
        self._rate_per_s, self._seconds = rate_per_s, seconds
        self._dialect = OurDialect({})
        self._record = Record(seconds)
        self._began = 0.0

    async def run(self) -> Record:
        """Offer the load, let faults happen, wait until all is quiet.

        Raises:
            BootPIGError: The service does not start, or not again.
        """
        record, chosen = self._record, asks(self._mix, self._rate_per_s, self._seconds)
        self._process = self._start()
        try:
            await asyncio.to_thread(self._process.wait_ready)
            client = Client(self._process.url)
            self._began = asyncio.get_running_loop().time()
            await self._sample(client)
            leaving = leave(client, self._mix, _LEAVE_SHARE * self._rate_per_s, record.counts)
            bad = send_bad(client, _BAD_EVERY_S, record.counts)
            works = (self._watch(client), self._kill(), self._fill(), leaving, bad)
            tasks = [asyncio.create_task(work) for work in works]
            load = await offer(chosen, lambda ask: self._send(client, ask), patience_s=_PATIENCE_S)
            record.outcomes = load.outcomes
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it early
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            client.close()
            await self._quiet()
        finally:
            await asyncio.to_thread(self._process.stop)
        return record

    async def _send(self, client: Client, ask: Ask) -> Answer:
        answer = await client.send("POST", *self._dialect.request(ask))
        self._dialect.learn(ask, answer)
        if answer.status == 404:  # the service no longer has the subject
            self._record.counts["subjects sent again"] += 1
            answer = await client.send("POST", *self._dialect.request(ask))
            self._dialect.learn(ask, answer)
        return answer

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def _until(self, share: float) -> None:
        await asyncio.sleep(max(0.0, share * self._seconds - self._now_s()))

    async def _kill(self) -> None:
        """Kill the process, and start it again as a supervisor does."""
        for share in KILLS:
            await self._until(share)
            gone_s = self._now_s()
            await asyncio.to_thread(self._process.kill)
            self._process = self._start()
            await asyncio.to_thread(self._process.wait_ready)
            self._record.away_s.append((gone_s, self._now_s()))

    async def _fill(self) -> None:
        for start, end in DISK_FULL:
            await self._until(start)
            fill_disk(self._process.pid, is_full=True)
            await self._until(end)
            fill_disk(self._process.pid, is_full=False)

    async def _watch(self, client: Client) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            with contextlib.suppress(OSError):  # there is no process
                await self._sample(client)
            self._progress("minutes", int(self._now_s() / 60), int(self._seconds / 60))

    async def _sample(self, client: Client) -> Sample:
        scrape = Scrape.of((await client.get("/metrics")).body.decode())
        self._record.samples.append(Sample(self._now_s(), self._process.usage(), scrape))
        return self._record.samples[-1]

    async def _quiet(self) -> None:
        """Wait until nothing is under way, for a while at most, and look once more."""
        client, ends_s = Client(self._process.url), self._now_s() + _QUIET_S
        sample = await self._sample(client)
        while sample.under_way and self._now_s() < ends_s:
            await asyncio.sleep(0.5)
            sample = await self._sample(client)
        await asyncio.sleep(1.0)  # connections of the clients are closed
        await self._sample(client)
        client.close()
