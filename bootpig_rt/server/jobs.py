"""JobBook: requests on their way and those that ended lately, so that they can be asked after."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bootpig_rt.server.engine_client import Drawing, EngineClient
from bootpig_rt.server.errors import ApiError

JobStatus: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]
_Key: TypeAlias = tuple[str, str]

_KEPT_S = 600.0
_KEPT = 10_000


@dataclass(eq=False)
class JobRecord:
    """One request on its way.

    Attributes:
        id: The request's.
        tenant: Whose it is.
        client: That draws it.
        drawing: None while its references are being encoded.
        num_images: That it asked for.
        created_at: Unix seconds.
        outcome: How it ended; None while it has not.
        is_cancelled: It was asked to stop.
    """

    id: str
    tenant: str
    client: EngineClient
    num_images: int
    created_at: float
    drawing: Drawing | None = None
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
    """Jobs by tenant and id. Used from the thread of the event loop alone.

    Of a job that has ended only what the API shows of it is kept: its pictures, and the model that
    drew them, would take gigabytes in ten minutes.
    """

    def __init__(self) -> None:
        """None yet."""
        self._live: dict[_Key, JobRecord] = {}
        self._ended: OrderedDict[_Key, tuple[float, dict[str, Any]]] = OrderedDict()
        self._begun: dict[str, deque[tuple[float, int]]] = {}

    def open(self, id: str, tenant: str, client: EngineClient, num_images: int) -> JobRecord:
        """A new one.

        Raises:
            ApiError: 409: one of that id is on its way.
        """
        if (tenant, id) in self._live:
            raise ApiError(409, "duplicate_request", "a request of this id is on its way")
        record = JobRecord(id, tenant, client, num_images, time.time())
        self._live[tenant, id] = record
        self._ended.pop((tenant, id), None)
        self._lately(tenant).append((time.monotonic(), num_images))
        return record

    def close(self, record: JobRecord, outcome: JobStatus) -> None:
        """It has ended; it can be asked after for ten minutes."""
        record.outcome, now = outcome, time.monotonic()
        key = record.tenant, record.id
        del self._live[key]
        self._ended[key] = now, record.to_dict()
        while self._ended:
            first, (ended_at, _) = next(iter(self._ended.items()))
            if len(self._ended) <= _KEPT and now - ended_at <= _KEPT_S:
                break
            del self._ended[first]

    def show(self, tenant: str, id: str) -> dict[str, Any]:
        """A job of a tenant, as the API shows it.

        Raises:
            ApiError: 404: none of that id, or another tenant's.
        """
        record = self._live.get((tenant, id))
        if record is not None:
            return record.to_dict()
        if (tenant, id) not in self._ended:
            raise ApiError(404, "job_not_found", "no such job; those that ended are soon forgotten")
        return self._ended[tenant, id][1]

    def cancel(self, tenant: str, id: str) -> None:
        """Stop a job of a tenant. One that has ended, or never was, stays so."""
        record = self._live.get((tenant, id))
        if record is not None:
            record.cancel()

    def live(self) -> list[JobRecord]:
        """Jobs on their way, of all tenants."""
        return list(self._live.values())

    def images_under_way(self, tenant: str) -> int:
        """Pictures of a tenant that wait or run."""
        return sum(one.num_images for one in self._live.values() if one.tenant == tenant)

    def wait_for_rate_s(self, tenant: str, num_images: int, per_minute: int) -> float:
        """Seconds until a tenant may begin so many pictures more; 60 where that is never."""
        begun = self._lately(tenant)
        room = per_minute - sum(count for _, count in begun)
        for begun_at, count in begun:
            if room >= num_images:
                break
            room += count
            if room >= num_images:
                return max(0.05, begun_at + 60.0 - time.monotonic())
        return 0.0 if room >= num_images else 60.0

    def _lately(self, tenant: str) -> deque[tuple[float, int]]:
        """When a tenant began how many pictures, within a minute.

        Not read off the jobs: of two that a tenant gave one id, the first is forgotten.
        """
        begun = self._begun.setdefault(tenant, deque())
        while begun and begun[0][0] <= time.monotonic() - 60.0:
            begun.popleft()
        return begun
