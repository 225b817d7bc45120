"""The client of the suites `serving` and `soak`: what it sends, when, and how it counts."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from bootpig_rt.benchmarks.serving.client import Answer, Client
from bootpig_rt.benchmarks.serving.dialects import OurDialect, PlainDialect
from bootpig_rt.benchmarks.serving.ladder import FACTOR, best, climb
from bootpig_rt.benchmarks.serving.load import Load, Outcome, Point, offer, point_of
from bootpig_rt.benchmarks.serving.metrics import Scrape
from bootpig_rt.benchmarks.serving.workload import Ask, Mix, apportioned, asks
from bootpig_rt.errors import ParameterError

T = TypeVar("T")
MIX = Mix(images=((1, 1.0),), new_share=0.0)
SECONDS = 60.0


class Jumping(selectors.DefaultSelector):
    """Waits for nobody: time jumps to the moment for which it was to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def simulated(work: Coroutine[Any, Any, T]) -> T:
    """Run something whose clock is simulated: no time passes."""
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def drawn(ask: Ask) -> Answer:
    return Answer(200, b'"b64_json"' * ask.images)


def one_at_a_time(took_s: float, places: int = 1 << 30) -> Callable[[Ask], Awaitable[Answer]]:
    """A server that draws one after the other, and refuses who finds no place to wait."""
    lock, waiting = asyncio.Lock(), 0

    async def send(ask: Ask) -> Answer:
        nonlocal waiting
        if waiting >= places:
            return Answer(429)
        waiting += 1
        try:
            async with lock:
                await asyncio.sleep(took_s)
        finally:
            waiting -= 1
        return drawn(ask)

    return send


def offered(rate: float, send: Callable[[Ask], Awaitable[Answer]], limit_s: float = 1.0) -> Point:
    chosen = asks(MIX, rate, SECONDS)
    load = simulated(offer(chosen, send, patience_s=3 * limit_s))
    return point_of(load, seconds=SECONDS, limit_s=limit_s, skip_s=15.0)


def test_below_its_capacity_all_pictures_of_a_server_are_in_time() -> None:
    point = offered(2.0, one_at_a_time(0.1))
    assert point.goodput_per_s == point.done_per_s == point.offered_per_s
    assert point.goodput_per_s == pytest.approx(2.0, rel=0.2)
    assert point.p50_ms == pytest.approx(100, abs=20)
    assert (point.lost, point.late_share, point.refused_share) == (0, 0, 0)


def test_above_it_a_queue_without_end_leaves_none_in_time() -> None:
    point = offered(20.0, one_at_a_time(0.1))
    assert point.goodput_per_s == 0
    assert point.lost > 0
    assert point.p99_ms is None


def test_a_queue_that_ends_keeps_its_goodput_and_loses_nothing() -> None:
    point = offered(100.0, one_at_a_time(0.1, places=5))
    assert point.goodput_per_s == pytest.approx(10.0, rel=0.02)
    assert point.lost == 0
    assert point.refused_share == pytest.approx(0.9, abs=0.02)
    assert point.refusal_p99_ms == pytest.approx(0, abs=1)
    assert (point.p99_ms or 0) <= 501


def test_the_ladder_ends_where_more_is_no_better() -> None:
    points = climb(lambda rate: offered(rate, one_at_a_time(0.1)), 1.0)
    rate, point = best(points)
    assert 5 < rate < 12
    assert point.goodput_per_s > 5
    assert points[-1][0] > rate
    assert points[1][0] == pytest.approx(FACTOR)


def test_a_request_that_is_sent_late_has_waited_since_it_was_due() -> None:
    async def blocked() -> Load:
        async def send(ask: Ask) -> Answer:
            if ask.at_s == 0:  # the client itself has no time
                loop = asyncio.get_running_loop()
                loop._selector.now += 1.0  # type: ignore[attr-defined]
            return drawn(ask)

        first = asks(MIX, 1, 1)[0]
        return await offer([replace(first, at_s=at) for at in (0.0, 0.2)], send, patience_s=1)

    load = simulated(blocked())
    assert load.outcomes[1].latency_s == pytest.approx(0.8)
    assert load.outcomes[1].late_s == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (Answer(429), "refused"),
        (Answer(503), "refused"),
        (Answer(504), "expired"),
        (Answer(500), "failed"),
        (Answer(200, b"{}"), "failed"),
    ],
)
def test_what_is_no_picture_is_counted_as_what_it_is(answer: Answer, end: str) -> None:
    async def send(ask: Ask) -> Answer:
        return answer

    load = simulated(offer(asks(MIX, 1, 1), send, patience_s=1))
    assert load.outcomes[0].end == end
    point = point_of(load, seconds=1.0, limit_s=1.0)
    assert point.lost == (end != "refused")
    assert point.goodput_per_s == 0


def test_a_connection_that_breaks_is_counted() -> None:
    async def send(ask: Ask) -> Answer:
        raise ConnectionResetError

    load = simulated(offer(asks(MIX, 1, 1), send, patience_s=1))
    assert load.outcomes[0].end == "broken"
    assert math.isinf(load.outcomes[0].latency_s)


def test_the_batch_of_answers_is_the_mean_over_launches() -> None:
    ask = asks(MIX, 1, 1)[0]
    ends = [Outcome(ask, "done", 0.1, 0.0, batch) for batch in (1, 3, 3, 3)]
    assert point_of(Load(tuple(ends), 0.0), seconds=1, limit_s=1).batch_mean == pytest.approx(2)


def test_requests_come_in_exact_shares_and_arrive_as_strangers_do() -> None:
    mix = Mix()
    chosen = asks(mix, 50.0, 20.0)
    assert len(chosen) == 1000
    assert Counter(ask.size_px for ask in chosen) == {64: 850, 96: 100, 128: 50}
    assert Counter(ask.steps for ask in chosen) == {8: 500, 12: 300, 25: 200}
    known = Counter(ask.subject for ask in chosen if ask.subject < mix.subjects)
    assert sum(known.values()) == 950
    assert known[0] > 1.8 * known[1] > 1.8 * known[2]
    gaps = np.diff([ask.at_s for ask in chosen])
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.15)  # exponential
    assert chosen != asks(mix, 50.0, 20.0, seed=1)
    assert chosen == asks(mix, 50.0, 20.0)


def test_new_subjects_are_new() -> None:
    new = [ask for ask in asks(Mix(new_share=0.5), 10.0, 4.0) if ask.subject >= 6]
    assert len(new) == len({ask.photo.png for ask in new}) == 20


def test_shares_are_met_to_the_last_request() -> None:
    found = Counter(apportioned(((1, 0.5), (2, 0.3), (3, 0.2)), 7))
    assert sum(found.values()) == 7
    assert found == {1: 4, 2: 2, 3: 1}


def test_a_subject_is_sent_once_and_again_where_the_service_has_lost_it() -> None:
    dialect, ask = OurDialect({"reference_schedule": "exact"}), asks(Mix(), 1, 1)[0]
    path, body = dialect.request(ask)
    assert path == "/v1/images/edits"
    assert b"data:image/png;base64," in body
    dialect.learn(ask, Answer(200, b'{"subject_id": "sub_00ff", "data": []}'))
    path, body = dialect.request(ask)
    assert path == "/v1/images/generations"
    assert b'"subject_id":"sub_00ff"' in body
    assert b'"exact"' in body
    dialect.learn(ask, Answer(404))
    assert dialect.request(ask)[0] == "/v1/images/edits"


def test_the_other_servers_tell_their_batch() -> None:
    answer = Answer(200, b'{"data":[{"b64_json":"AAAA"}],"batch":3}')
    assert PlainDialect("/draw").batch_of(answer) == 3


def test_the_mean_of_a_histogram_is_of_what_came_since() -> None:
    text = 'x_sum{model="a"} %d.0\nx_count{model="a"} %d.0\nx_sum{model="b"} 1.0\n'
    before, after = Scrape.of(text % (10, 5)), Scrape.of(text % (40, 15))
    assert after.mean_since(before, "x") == 3
    assert before.mean_since(before, "x") is None


async def _served(
    answers: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    work: Callable[[Client], Awaitable[T]],
) -> T:
    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/root", key="secret")
    try:
        return await work(client)
    finally:
        client.close()
        server.close()
        await server.wait_closed()


def test_the_client_reads_answers_of_any_length_and_keeps_its_connection() -> None:
    seen: list[bytes] = []
    connections = 0

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for reply in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            b"HTTP/1.1 429 No\r\nRetry-After: 3\r\nConnection: close\r\n\r\nlater",
        ):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            seen.append(head + await reader.readexactly(length))
            writer.write(reply)
        writer.close()

    async def work(client: Client) -> list[Answer]:
        return [await client.send("POST", f"/{n}", b"{}") for n in range(3)]

    first, second, third = asyncio.run(_served(answers, work))
    assert (first.status, first.body) == (200, b"hello")
    assert (second.status, second.body) == (201, b"abcde")
    assert (third.status, third.body, third.headers["retry-after"]) == (429, b"later", "3")
    assert connections == 1
    assert seen[0].startswith(b"POST /root/0 HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in seen[0]
    assert seen[0].endswith(b"\r\n\r\n{}")


def test_an_answer_that_is_cut_off_is_a_broken_connection() -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
        writer.close()

    with pytest.raises(ConnectionError, match="cut off"):
        asyncio.run(_served(answers, lambda client: client.get("/")))


def test_a_client_that_gives_up_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()
        writer.close()

    async def work(client: Client) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.get("/"), 0.05)
        await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(_served(answers, work))


def test_another_scheme_than_http_is_refused() -> None:
    with pytest.raises(ParameterError, match="expected one such as http://"):
        Client("ftp://somewhere")
