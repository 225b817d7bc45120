"""JobBook: requests on their way and those that ended lately, so that they can be asked after."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bootpig_rt.server.engine_client import Drawing, EngineClient
from bootpig_rt.server.errors import ApiError

JobStatus: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]

_KEPT_S = 600.0
_KEPT = 10_000


@dataclass(eq=False)
class JobRecord:
    """One request.

    Attributes:
        id: The request's.
        tenant: Whose it is.
        client: That draws it.
        drawing: None while its references are being encoded.
        num_images: That it asked for.
        created_at: Unix seconds.
        begun_at: By `time.monotonic`, which no one can set back.
        ended_at: Likewise; None while it is on its way.
        outcome: How it ended.
        is_cancelled: It was asked to stop.
    """

    id: str
    tenant: str
    client: EngineClient
    num_images: int
    created_at: float
    begun_at: float
    drawing: Drawing | None = None
    ended_at: float | None = None
    outcome: JobStatus | None = None
    is_cancelled: bool = False

    def cancel(self) -> None:
        """It was asked to stop, and does within a step. May be called twice."""
        self.is_cancelled = True
        self.stop()

    def stop(self) -> None:
        """Nobody wants what is not done of it. May be called twice, also when it has ended."""
        if self.drawing is not None:
            self.drawing.cancel()

    def to_dict(self) -> dict[str, Any]:
        """As the API shows it."""
        status, position, done, total, wait_s = self.outcome, None, 0, None, None
        if self.drawing is not None:
            progress = self.drawing.progress()
            done, total, position = progress.done_steps, progress.total_steps, progress.position
            if status is None:
                status = "running" if progress.has_begun else "queued"
        status = status or "queued"
        if status == "queued":
            wait_s = round(self.client.load().expected_wait_s, 2)
        return {
            "id": self.id,
            "object": "job",
            "status": status,
            "model": self.client.facts.name,
            "position": position if status == "queued" else None,
            "expected_wait_s": wait_s,
            "done_steps": done,
            "total_steps": total,
            "num_images": self.num_images,
            "created_at": int(self.created_at),
        }


class JobBook:
    """Jobs by tenant and id. Used from the thread of the event loop alone."""

    def __init__(self) -> None:
        """None yet."""
        self._jobs: OrderedDict[tuple[str, str], JobRecord] = OrderedDict()

    def open(self, id: str, tenant: str, client: EngineClient, num_images: int) -> JobRecord:
        """A new one.

        Raises:
            ApiError: 409: one of that id is on its way.
        """
        known = self._jobs.get((tenant, id))
        if known is not None and known.ended_at is None:
            raise ApiError(409, "duplicate_request", "a request of this id is on its way")
        self._drop_old()
        record = JobRecord(id, tenant, client, num_images, time.time(), time.monotonic())
        self._jobs[tenant, id] = record
        self._jobs.move_to_end((tenant, id))
        return record

    def close(self, record: JobRecord, outcome: JobStatus) -> None:
        """It has ended; it can be asked after for ten minutes."""
        record.ended_at, record.outcome = time.monotonic(), outcome

    def get(self, tenant: str, id: str) -> JobRecord:
        """A job of a tenant.

        Raises:
            ApiError: 404: none of that id, or another tenant's.
        """
        record = self._jobs.get((tenant, id))
        if record is None:
            raise ApiError(404, "job_not_found", "no such job; those that ended are soon forgotten")
        return record

    def live(self, tenant: str | None = None) -> list[JobRecord]:
        """Jobs on their way, of one tenant or of all."""
        return [
            one
            for one in self._jobs.values()
            if one.ended_at is None and tenant in (None, one.tenant)
        ]

    def images_under_way(self, tenant: str) -> int:
        """Pictures of a tenant that wait or run."""
        return sum(one.num_images for one in self.live(tenant))

    def wait_for_rate_s(self, tenant: str, num_images: int, per_minute: int) -> float:
        """Seconds until a tenant may begin so many pictures more; 60 where that is never."""
        now = time.monotonic()
        begun = [
            (one.begun_at, one.num_images)
            for one in self._jobs.values()
            if one.tenant == tenant and one.begun_at > now - 60.0
        ]
        room = per_minute - sum(count for _, count in begun)
        for begun_at, count in begun:
            if room >= num_images:
                break
            room += count
            if room >= num_images:
                return max(0.05, begun_at + 60.0 - now)
        return 0.0 if room >= num_images else 60.0

    def _drop_old(self) -> None:
        now = time.monotonic()
        ended = [key for key, one in self._jobs.items() if one.ended_at is not None]
        too_many = max(0, len(self._jobs) - _KEPT)
        for at, key in enumerate(ended):
            ended_at = self._jobs[key].ended_at or now
            if at < too_many or now - ended_at > _KEPT_S:
                del self._jobs[key]
