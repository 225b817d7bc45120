"""A server under load: how long it takes when nobody else asks, and what it does with a rate."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.benchmarks.serving.client import Answer, Client
from bootpig_rt.benchmarks.serving.dialects import Dialect
from bootpig_rt.benchmarks.serving.load import Load, Point, end_of, offer, point_of
from bootpig_rt.benchmarks.serving.metrics import Scrape
from bootpig_rt.benchmarks.serving.process import ServerProcess
from bootpig_rt.benchmarks.serving.workload import Ask, Mix, asks
from bootpig_rt.errors import BootPIGError

T = TypeVar("T")

STEP_PICTURES = "bootpig_step_pictures"
"""Histogram of a server's metrics: pictures of a launch of the U-Net."""


@dataclass(frozen=True)
class Pace:
    """How a load is offered.

    Attributes:
        seconds: How long requests come.
        skip_s: Those that come first, and are not counted.
        alone: Requests that are timed one after the other.
    """

    seconds: float
    skip_s: float
    alone: int


class Target:
    """A server, started on first use, and held off the processor between loads.

    Args:
        dialect: How it is asked.
        start: Starts it; None: it runs already, at `url`.
        url: Where one runs that is not ours to start.
        key: Of its API.
        mix: What it is asked for.
        pace: How.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        start: Callable[[], ServerProcess] | None = None,
        url: str = "",
        key: str = "",
        mix: Mix,
        pace: Pace,
    ) -> None:
        self.dialect, self.mix, self.pace = dialect, mix, pace
        self._start, self._url, self._key = start, url, key
        self._process: ServerProcess | None = None
        self._seed = 0

    def begin(self) -> None:
        """Start it, and let it draw some of everything.

        Raises:
            BootPIGError: It does not start, or does not draw.
        """
        if self._start is not None:
            self._process = self._start()
            self._process.wait_ready()
        self.alone()

    def stop(self) -> None:
        """End it, where it was started."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def narrow(self) -> None:
        """Leave out sizes and steps that it refuses.

        Raises:
            BootPIGError: It refuses all.
        """
        usual = asks(self.mix, 1, 1)[0]
        size_px, steps = self.mix.sizes_px[0][0], self.mix.steps[0][0]

        async def accepted(client: Client) -> Mix:
            sizes = [
                share for share in self.mix.sizes_px
                if await self._takes(client, replace(usual, size_px=share[0], steps=steps))
            ]  # fmt: skip
            numbers = [
                share for share in self.mix.steps
                if await self._takes(client, replace(usual, size_px=size_px, steps=share[0]))
            ]  # fmt: skip
            return replace(self.mix, sizes_px=tuple(sizes), steps=tuple(numbers))

        self.mix = self._run(accepted)
        if not self.mix.sizes_px or not self.mix.steps:
            raise BootPIGError(f"{self._url} draws neither {size_px} px nor {steps} steps")

    async def _takes(self, client: Client, ask: Ask) -> bool:
        answer = await self._send(client, ask)
        if answer.status not in (400, 422):
            _check_drawn(ask, answer)
        return answer.status == 200

    def alone(self) -> list[float]:
        """Latencies in s of requests that nobody shares the server with.

        Raises:
            BootPIGError: One of them was not drawn.
        """

        async def one_by_one(client: Client) -> list[float]:
            latencies = []
            for ask in asks(self.mix, self.pace.alone, 1.0, seed=1):
                start = time.perf_counter()
                answer = await self._send(client, ask)
                latencies.append(time.perf_counter() - start)
                _check_drawn(ask, answer)
            return latencies

        return self._run(one_by_one)

    def offer(self, rate_per_s: float, limit_s: float) -> Point:
        """What it does with requests at a rate; a backlog that is left ends with its process.

        Args:
            rate_per_s: Of the requests.
            limit_s: A picture that comes later is too late; three times as long after the last
                request the clients go away.
        """
        self._seed += 1
        pace = self.pace
        chosen = asks(self.mix, rate_per_s, pace.seconds, seed=self._seed)

        async def load(client: Client) -> tuple[Load, float | None]:
            before = await self._scrape(client)
            loaded = await offer(
                chosen, partial(self._send, client), patience_s=3 * limit_s,
                batch_of=self.dialect.batch_of,
            )  # fmt: skip
            return loaded, (await self._scrape(client)).mean_since(before, STEP_PICTURES)

        loaded, batch_mean = self._run(load)
        if self._process is not None and any(x.end == "unanswered" for x in loaded.outcomes):
            self.stop()
            self.begin()
        return point_of(
            loaded, seconds=pace.seconds, limit_s=limit_s, skip_s=pace.skip_s,
            batch_mean=batch_mean,
        )  # fmt: skip

    def pictures(self, chosen: Sequence[Ask]) -> list[NDArray[np.int16]]:
        """What it draws, pixels 0 to 255, int16 [H, W, 3] each.

        Raises:
            BootPIGError: One was not drawn.
        """

        async def draw(client: Client) -> list[NDArray[np.int16]]:
            drawn = []
            for ask in chosen:
                answer = await self._send(client, ask)
                _check_drawn(ask, answer)
                for each in msgspec.json.decode(answer.body)["data"]:
                    file = io.BytesIO(base64.b64decode(each["b64_json"]))
                    drawn.append(np.asarray(Image.open(file).convert("RGB"), np.int16))
            return drawn

        return self._run(draw)

    async def _send(self, client: Client, ask: Ask) -> Answer:
        answer = await client.send("POST", *self.dialect.request(ask))
        self.dialect.learn(ask, answer)
        return answer

    async def _scrape(self, client: Client) -> Scrape:
        answer = await client.get("/metrics")
        return Scrape.of(answer.body.decode()) if answer.status == 200 else Scrape()

    def _run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Do something with the server awake."""
        if self._process is not None:
            self._process.resume()
        url = self._url if self._process is None else self._process.url

        async def inside() -> T:
            client = Client(url, key=self._key)
            try:
                return await work(client)
            finally:
                client.close()

        try:
            return asyncio.run(inside())
        finally:
            if self._process is not None:
                self._process.pause()


def _check_drawn(ask: Ask, answer: Answer) -> None:
    if end_of(ask, answer) != "done":
        said = answer.body[:200].decode(errors="replace")
        raise BootPIGError(
            f"a server answered {answer.status} to {ask.images} pictures of {ask.size_px} px in "
            f"{ask.steps} steps, expected 200: {said}"
        )
