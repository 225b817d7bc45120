"""A process that draws for others: a model and its engine, behind methods that Ray calls.

Nothing here knows Ray: `ray.py` makes a deployment of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from PIL import Image

from bootpig_rt.engine.events import DoneEvent, Event, Launch, StepEvent
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.subject import Subject
from bootpig_rt.server.engine_client import Drawing
from bootpig_rt.server.heap import keep_heap_small
from bootpig_rt.server.local import load_local
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.serving.messages import (
    Description,
    Order,
    Status,
    SubjectMissing,
    Told,
    sendable,
)
from bootpig_rt.serving.subject_storage import SubjectStorage

logger = logging.getLogger(__name__)

TELL_EVERY_S = 0.2
"""Steps between previews are told this often at most: a message costs more than a small step."""

_LAUNCHES_KEPT = 10_000


class EngineReplica:
    """One model in this process.

    Args:
        name: Of the model.
        folder: Of the pair or bundle.
        options: Of the service that it is a part of.
        subjects: Where subjects are fetched from; None where each comes with its request.
        replica: The process's name.

    Raises:
        BootPIGError: The model cannot be used.
    """

    def __init__(
        self, name: str, folder: str, options: ServerOptions, subjects: str | None, replica: str
    ) -> None:
        """Load the model and warm it up."""
        keep_heap_small()
        self._replica = replica
        self._launches: deque[Launch] = deque(maxlen=_LAUNCHES_KEPT)
        self._storage = (
            None if subjects is None else SubjectStorage(subjects, ttl_s=options.subject_ttl_s)
        )
        self._engine = load_local(name, Path(folder), options, self._launches.append)

    def describe(self) -> Description:
        """What those must know who send requests here."""
        pipeline = self._engine.pipeline
        return Description(
            self._engine.facts,
            pipeline.spec,
            pipeline.spec.tokenizer(),
            pipeline.store.options,
        )

    def status(self) -> Status:
        """How it is now. Launches are told to the one who asks first."""
        if self._storage is not None:
            self._storage.drop_unused()  # asked for every second or so
        launches = []
        with contextlib.suppress(IndexError):  # two may ask at once
            while True:
                launches.append(self._launches.popleft())
        return Status(
            self._replica,
            os.getpid(),
            self._engine.load(),
            self._engine.store_stats(),
            tuple(launches),
        )

    async def prepare(
        self, images: Sequence[bytes | Image.Image]
    ) -> tuple[list[Image.Image], list[str]]:
        """References as the model will see them, and what callers should know of them."""
        warnings: list[str] = []
        return await self._engine.prepare(images, warnings=warnings), warnings

    async def encode(
        self, prepared: Sequence[Image.Image], reference_prompt: str, noise_seed: int
    ) -> Subject:
        """The subject of prepared references."""
        return await self._engine.encode(prepared, reference_prompt, noise_seed=noise_seed)

    async def forget(self, fingerprint: str, tenant: str) -> None:
        """Drop a subject, and its reference tables."""
        if self._storage is not None:
            self._storage.drop(fingerprint, tenant)
        await self._engine.forget(fingerprint, tenant)

    async def draw(self, order: Order) -> AsyncIterator[Told]:
        """Draw a request. Closing the iterator, or cancelling its task, stops it within a step.

        Raises:
            SubjectMissing: The subject is to be sent along.
            BootPIGError: What it failed with.
        """
        request = order.request
        if order.subject:
            request = request.of_subject(await self._fetched(order.subject, request.tenant))
        drawing = await self._engine.submit(
            request,
            request_id=order.request_id,
            deadline_s=order.deadline_s,
            preview_every=order.preview_every,
            priority=order.priority,
        )
        try:
            yield Told(None, drawing.progress())
            async for told in _told(drawing):
                yield told
        finally:
            drawing.cancel()

    def check_health(self) -> None:
        """Ray asks this now and then, and replaces a replica that raises.

        Raises:
            RuntimeError: The engine's thread has ended, hangs, or has lost its device.
        """
        if not self._engine.engine.is_served:
            raise RuntimeError("the engine has stopped")
        fault = self._engine.fault()
        if fault is not None:
            raise RuntimeError(fault)

    async def close(self, *, drain_s: float) -> None:
        """End it."""
        await self._engine.close(drain_s=drain_s)

    async def _fetched(self, fingerprint: str, tenant: str) -> Subject:
        if self._storage is None:
            raise SubjectMissing(fingerprint)
        try:
            return await asyncio.to_thread(self._storage.get, fingerprint, tenant)
        except ParameterError as error:
            raise SubjectMissing(fingerprint) from error


async def _told(drawing: Drawing) -> AsyncIterator[Told]:
    """Events that are worth a message, and progress where none comes for a while."""
    events = drawing.events()
    last, told_at = drawing.progress(), time.monotonic()
    coming: asyncio.Task[Event] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=TELL_EVERY_S)
            progress, now = drawing.progress(), time.monotonic()
            if not coming.done():
                if progress != last:
                    last, told_at = progress, now
                    yield Told(None, progress)
                continue
            event, coming = coming.result(), None
            is_first = not last.done_steps
            is_due = now - told_at >= TELL_EVERY_S
            if is_due or is_first or _must_be_told(event):
                last, told_at = progress, now
                yield Told(sendable(event), progress)
            if isinstance(event, DoneEvent):
                return
    finally:
        if coming is not None:
            coming.cancel()


def _must_be_told(event: Event) -> bool:
    return not isinstance(event, StepEvent) or event.previews is not None
