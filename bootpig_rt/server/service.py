"""Service: what is behind the routes. Models by name, subjects, jobs; begins, reloads, drains.

Everything here runs on the thread of the event loop; what takes long is awaited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeAlias

from bootpig_rt.errors import BootPIGError
from bootpig_rt.server.engine_client import EngineClient
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.jobs import JobBook, JobRecord
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.model_states import ModelState
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.subject_folder import SubjectFolder
from bootpig_rt.server.subjects import SubjectLibrary

logger = logging.getLogger(__name__)

SWEEP_S = 5.0
"""How long after its time a subject may still be there, where nobody asks for any."""

State: TypeAlias = Literal["starting", "ready", "draining", "failed"]
ClientLoader: TypeAlias = Callable[[], EngineClient]
"""Loads a model, checks it and warms it up; called on a thread, for it takes seconds."""


class Service:
    """One running service.

    Args:
        options: Of the whole of it.
        loaders: Of the models by name; the first is drawn with unless a request names another.
        output: What pictures go through on their way out.
        metrics: Counts what happens.
        tidy: Forgets what lies elsewhere and has had its time; called now and then, on a thread.
    """

    def __init__(
        self,
        options: ServerOptions,
        loaders: Mapping[str, ClientLoader],
        output: Output,
        metrics: Metrics,
        *,
        tidy: Callable[[], None] | None = None,
    ) -> None:
        """Nothing is loaded yet."""
        self.options, self.output, self.metrics = options, output, metrics
        self.state: State = "starting"
        self.jobs = JobBook()
        folder = options.subject_folder
        self.library = SubjectLibrary(
            tenant_bytes=options.tenant_subject_bytes,
            ttl_s=options.subject_ttl_s,
            folder=None if folder is None else SubjectFolder(Path(folder)),
        )
        self.clients: dict[str, EngineClient] = {}
        self._loaders = dict(loaders)
        metrics.watch(self._states)
        self._tidy = tidy
        self._sweeping: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._in_use: Counter[EngineClient] = Counter()

    async def start(self) -> None:
        """Load every model; ready from then on.

        Raises:
            BootPIGError: A model cannot be used.
        """
        for name, load in self._loaders.items():
            if self.state != "starting":  # told to stop meanwhile
                return
            self.clients[name] = await asyncio.to_thread(load)
        await asyncio.to_thread(self.library.read_folder)
        self._sweeping = asyncio.create_task(self._sweep_now_and_then())
        if self.state == "starting":
            self.state = "ready"
            logger.info("ready: %s", ", ".join(self.clients))

    def client(self, name: str | None) -> EngineClient:
        """The model that a request asks for.

        Raises:
            ApiError: 404: none of that name.
        """
        if name is None:
            return next(iter(self.clients.values()))
        if name not in self.clients:
            known = ", ".join(self.clients)
            raise ApiError(
                404, "model_not_found", f"no such model; there are {known}", param="model"
            )
        return self.clients[name]

    def fault(self) -> str | None:
        """Why it will draw nothing more until its process is started again; None where it will."""
        return next((one.fault() for one in self.clients.values() if one.fault()), None)

    def fail(self) -> None:
        """Take no more work, and end what is under way: a model has failed for good."""
        self.state = "failed"
        for job in self.jobs.live():
            job.cancel()

    @contextmanager
    def using(self, client: EngineClient) -> Iterator[None]:
        """A model is needed inside, though no job of it runs: it is not closed when replaced."""
        self._in_use[client] += 1
        try:
            yield
        finally:
            self._in_use[client] -= 1
            if not self._in_use[client]:
                del self._in_use[client]

    def check_ready(self) -> None:
        """Refuse work while it starts or drains, or when it has failed.

        Raises:
            ApiError: 503.
        """
        if self.state == "failed" or self.fault() is not None:
            text = "the service has failed and is being started again; try again then"
            raise ApiError(503, "engine_lost", text, retry_after_s=5.0)
        if self.state == "starting":
            text = "the service is starting; try again in a moment"
            raise ApiError(503, "not_ready", text, retry_after_s=1.0)
        if self.state == "draining":
            text = "the service is stopping; another one will answer"
            raise ApiError(503, "draining", text, retry_after_s=5.0)

    def check_room(self, clients: Iterable[EngineClient]) -> None:
        """Refuse a request before its references cost anything, where its picture could not wait.

        Pictures whose references are being encoded count: they will wait next.

        Args:
            clients: That could draw it; one with room is enough.

        Raises:
            ApiError: 429.
        """
        live, full = self.jobs.live(), list[tuple[float, int]]()
        for client in clients:
            load = client.load()
            encoding = (one for one in live if one.client is client and one.drawing is None)
            waiting = load.waiting + sum(one.num_images for one in encoding)
            if waiting < self.options.max_waiting:
                return
            full.append((load.expected_wait_s, waiting))
        wait_s, waiting = min(full)
        text = f"{waiting} pictures wait already; try again in {wait_s:.0f} s"
        raise ApiError(429, "queue_full", text, retry_after_s=wait_s)

    def open_job(
        self, id: str, principal: Principal, client: EngineClient, num_images: int
    ) -> JobRecord:
        """Take a request of a tenant.

        Args:
            id: The request's.
            principal: Whose it is.
            client: That will draw it.
            num_images: That it asks for.

        Raises:
            ApiError: 400: the tenant may never have so many; 429: it has too many under way; 409:
                the id is in use.
        """
        tenant, quota = principal.name, principal.quota
        limits = (quota.max_waiting, self.options.tenant_max_waiting)
        most = min((one for one in limits if one is not None), default=None)
        rate = quota.images_per_minute
        never = min((one for one in (most, rate) if one is not None), default=num_images)
        if num_images > never:
            text = f"n is {num_images}, expected 1..{never} with your key"
            raise ApiError(400, "invalid_value", text, param="n")
        under_way = self.jobs.images_under_way(tenant)
        if most is not None and under_way + num_images > most:
            text = f"{under_way} of your pictures are under way, {most} may be; wait for some"
            wait_s = client.load().expected_wait_s
            raise ApiError(429, "quota_exceeded", text, retry_after_s=wait_s)
        if rate is not None:
            wait_s = self.jobs.wait_for_rate_s(tenant, num_images, rate)
            if wait_s > 0:
                text = f"your key draws {rate} pictures a minute; try again in {wait_s:.0f} s"
                raise ApiError(429, "quota_exceeded", text, retry_after_s=wait_s)
        return self.jobs.open(id, tenant, client, num_images)

    async def reload(self, name: str | None) -> EngineClient:
        """Load a model again from its folder. The old one draws until the new one is warm.

        Raises:
            ApiError: 404 for an unknown one; 422: the new one cannot be used, the old one stays.
        """
        name = self.client(name).facts.name
        async with self._reloading:
            start = time.monotonic()
            try:
                new = await asyncio.to_thread(self._loaders[name])
            except BootPIGError as error:
                logger.error("the model %s was not reloaded: %s", name, error)
                self.metrics.reloaded(name, is_ok=False)
                text = "the new model cannot be used, the old one goes on; the log says why"
                raise ApiError(422, "reload_failed", text, param="model") from error
            old, self.clients[name] = self.clients[name], new
            self.metrics.reloaded(name, is_ok=True)
            logger.info("the model %s was reloaded in %.1f s", name, time.monotonic() - start)
        self.library.keep_only(one.facts.fingerprint for one in self.clients.values())
        task = asyncio.create_task(self._retire(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return new

    async def forget_tables(self) -> None:
        """Forget the tables of subjects that the library has no more.

        Raises:
            StorageError: Some cannot be removed now; they are tried again later.
        """
        gone = self.library.take_gone()
        try:
            for client in list(self.clients.values()):
                with self.using(client):
                    for tenant, fingerprint in gone:
                        await client.forget(fingerprint, tenant)
        except BaseException:
            self.library.put_gone(gone)
            raise

    async def sweep(self) -> None:
        """Forget subjects whose time is over, and their tables.

        Raises:
            StorageError: Some cannot be removed now; they are tried again later.
        """
        self.library.drop_expired()
        await self.forget_tables()
        if self._tidy is not None:
            await asyncio.to_thread(self._tidy)

    async def drain(self) -> None:
        """Take no more work, and give what runs `drain_s` to end; the rest is cancelled."""
        self.state = "draining"
        ends = time.monotonic() + self.options.drain_s
        while self.jobs.live() and time.monotonic() < ends:
            await asyncio.sleep(0.02)
        for job in self.jobs.live():
            job.cancel()

    async def close(self) -> None:
        """End everything."""
        self.state = "draining"
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        for job in self.jobs.live():
            job.cancel()
        await asyncio.gather(*(one.close(drain_s=0.0) for one in self.clients.values()))
        await asyncio.gather(*self._closing)

    def _states(self) -> dict[str, ModelState]:
        """What the models are doing; asked on the thread of whoever scrapes."""
        return {
            name: ModelState(**asdict(client.load()), store=client.store_stats())
            for name, client in list(self.clients.items())
        }

    async def _sweep_now_and_then(self) -> None:
        while True:
            try:
                await self.sweep()
            except BootPIGError as error:
                logger.warning("what has had its time could not be forgotten: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def _retire(self, old: EngineClient) -> None:
        """Close a model that was replaced, when nobody uses it any more."""
        ends = time.monotonic() + self.options.max_deadline_s
        while time.monotonic() < ends and (
            self._in_use[old] or any(job.client is old for job in self.jobs.live())
        ):
            await asyncio.sleep(0.05)
        await old.close(drain_s=self.options.drain_s)
