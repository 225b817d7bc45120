"""Offers a load to a server, and counts what came of it.

A latency runs from the moment at which a request was due, not from that at which it was sent: a
client that falls behind makes no server look quick. Requests of the first part of the load fill the
queue and are not counted; what is counted is by arrival, so that no answer falls out at the end.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np

from bootpig_rt.benchmarks.serving.client import Answer
from bootpig_rt.benchmarks.serving.workload import Ask

Send: TypeAlias = Callable[[Ask], Awaitable[Answer]]
End: TypeAlias = Literal["done", "refused", "expired", "failed", "broken", "unanswered"]
"""`refused`: told to come back later; `expired`: taken, and given up at its deadline; `failed`: any
other error; `broken`: the connection broke; `unanswered`: the client went away in the end."""

REFUSALS = (429, 503)


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        ask: What was asked for.
        end: How it ended.
        latency_s: From when it was due to its answer; infinite where there is none.
        late_s: How much later than due it was sent.
        batch: In how large a batch it was drawn, where that is known.
        status: Of HTTP; 0 where there was no answer.
    """

    ask: Ask
    end: End
    latency_s: float
    late_s: float
    batch: int | None = None
    status: int = 0


@dataclass(frozen=True)
class Load:
    """A load that was offered.

    Attributes:
        outcomes: Of all requests, in the order of their arrival.
        cpu_share: Processor time of the client, over the time that it took: 1 is a core.
    """

    outcomes: tuple[Outcome, ...]
    cpu_share: float


@dataclass(frozen=True)
class Point:
    """What a server did with a load. Rates are per second, times in ms.

    Attributes:
        offered_per_s: Pictures that were asked for.
        goodput_per_s: Pictures that came within the limit.
        done_per_s: Pictures that came.
        p50_ms: Of the latency of requests that were not refused. None where too many had no answer.
        p95_ms: Likewise.
        p99_ms: Likewise.
        refused_share: Of the requests.
        late_share: Of the requests that were not refused: done, but after the limit.
        lost: Requests that were not refused, and got no pictures.
        refusal_p99_ms: Of the latency of refusals; None where there were none.
        batch_mean: Pictures of a launch of the U-Net; None where nobody tells.
        client_share: Of a core, that the client took.
        client_late_ms: By how much its requests were late at most.
    """

    offered_per_s: float
    goodput_per_s: float
    done_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    refused_share: float
    late_share: float
    lost: float
    refusal_p99_ms: float | None
    batch_mean: float | None
    client_share: float
    client_late_ms: float

    def values(self) -> dict[str, float | None]:
        """All of it, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


async def offer(
    asks: Sequence[Ask],
    send: Send,
    *,
    patience_s: float,
    batch_of: Callable[[Answer], int | None] = lambda _: None,
) -> Load:
    """Send requests when they are due, whatever became of those before.

    Args:
        asks: In the order of their arrival.
        send: Sends one.
        patience_s: How long after the last one is due answers are waited for.
        batch_of: Reads the batch from an answer.
    """
    loop = asyncio.get_running_loop()
    start, cpu = loop.time() + 0.05, time.process_time()
    tasks: list[asyncio.Task[Outcome]] = []
    for ask in asks:
        await asyncio.sleep(max(0.0, start + ask.at_s - loop.time()))
        tasks.append(asyncio.create_task(_one(ask, start, send, batch_of)))
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=patience_s)
        for task in left:
            task.cancel()
    outcomes = tuple(await asyncio.gather(*tasks))
    return Load(outcomes, (time.process_time() - cpu) / max(1e-9, loop.time() - start))


async def _one(
    ask: Ask, start: float, send: Send, batch_of: Callable[[Answer], int | None]
) -> Outcome:
    loop = asyncio.get_running_loop()
    due = start + ask.at_s
    late_s = loop.time() - due
    try:
        answer = await send(ask)
    except OSError:
        return Outcome(ask, "broken", math.inf, late_s)
    except asyncio.CancelledError:  # by `offer`, whose patience is at its end
        return Outcome(ask, "unanswered", math.inf, late_s)
    took_s = loop.time() - due
    return Outcome(ask, end_of(ask, answer), took_s, late_s, batch_of(answer), answer.status)


def end_of(ask: Ask, answer: Answer) -> End:
    """How a request ended that was answered."""
    if answer.status == 200:
        return "done" if answer.body.count(b'"b64_json"') == ask.images else "failed"
    if answer.status in REFUSALS:
        return "refused"
    return "expired" if answer.status == 504 else "failed"


def point_of(
    load: Load,
    *,
    seconds: float,
    limit_s: float,
    skip_s: float = 0.0,
    batch_mean: float | None = None,
) -> Point:
    """Count what arrived from `skip_s` on.

    Args:
        load: What was offered.
        seconds: How long it came.
        limit_s: A picture that comes later is too late.
        skip_s: Of its first part.
        batch_mean: Pictures of a launch, where the server told; answers tell otherwise.
    """
    counted = [each for each in load.outcomes if each.ask.at_s >= skip_s]
    window_s = seconds - skip_s
    taken = [each for each in counted if each.end != "refused"]
    done = [each for each in taken if each.end == "done"]
    good = [each for each in done if each.latency_s <= limit_s]
    refusals = [each.latency_s for each in counted if each.end == "refused"]
    latencies = [each.latency_s if each.end == "done" else math.inf for each in taken]
    launches = sum(each.ask.images / each.batch for each in done if each.batch)
    if batch_mean is None and launches:
        batch_mean = sum(each.ask.images for each in done if each.batch) / launches
    return Point(
        offered_per_s=_pictures(counted) / window_s,
        goodput_per_s=_pictures(good) / window_s,
        done_per_s=_pictures(done) / window_s,
        p50_ms=percentile_ms(latencies, 50),
        p95_ms=percentile_ms(latencies, 95),
        p99_ms=percentile_ms(latencies, 99),
        refused_share=len(refusals) / max(1, len(counted)),
        late_share=(len(done) - len(good)) / max(1, len(taken)),
        lost=float(len(taken) - len(done)),
        refusal_p99_ms=percentile_ms(refusals, 99),
        batch_mean=batch_mean,
        client_share=load.cpu_share,
        client_late_ms=1e3 * max((each.late_s for each in load.outcomes), default=0.0),
    )


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float | None:
    """Of latencies, in ms; the smallest that no more are above. None where it is infinite."""
    if not latencies_s:
        return None
    found = float(np.percentile(latencies_s, percent, method="inverted_cdf"))
    return 1e3 * found if math.isfinite(found) else None


def _pictures(outcomes: Sequence[Outcome]) -> int:
    return sum(each.ask.images for each in outcomes)
