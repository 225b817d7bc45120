"""How the replicas of a model are, all together: asked for every second while they are few."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from bootpig_rt.engine.events import Launch
from bootpig_rt.server.engine_client import Load
from bootpig_rt.serving.messages import Status
from bootpig_rt.storage.stats import StoreStats

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_REPLICAS_PER_S = 50
"""Each ingress asks no more than this many a second, so of 1,000 replicas each every 20 s."""

_ANSWER_S = 5.0


class FleetWatch:
    """Asks the replicas behind a handle how they are, on a thread of its own.

    Args:
        handle: Of Ray Serve.
        on_launch: Hears of the steps that replicas tell of.
    """

    def __init__(self, handle: Any, on_launch: Callable[[Launch], None]) -> None:
        """Begin."""
        self._handle, self._on_launch = handle, on_launch
        self._lock = threading.Lock()
        self._now: dict[str, Status] = {}
        self._gone: dict[str, StoreStats] = {}
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bootpig-watch", daemon=True)
        self._thread.start()

    def load(self) -> Load:
        """Of all replicas; the wait is that of the least busy one."""
        with self._lock:
            loads = [one.load for one in self._now.values()]
        return Load(
            sum(one.waiting for one in loads),
            sum(one.running for one in loads),
            min((one.expected_wait_s for one in loads), default=1.0),
        )

    def store_stats(self) -> StoreStats:
        """Counters of all replicas that ever were, bytes of those that are."""
        with self._lock:
            now = [one.store for one in self._now.values()]
            gone = list(self._gone.values())
        total = {}
        for one in fields(StoreStats):
            counted = now if one.name.endswith("_bytes") else [*now, *gone]
            total[one.name] = sum(getattr(stats, one.name) for stats in counted)
        return StoreStats(**total)

    def close(self) -> None:
        """End."""
        self._is_closing.set()
        self._thread.join(2 * _ANSWER_S)

    def take(self, statuses: list[Status]) -> None:
        """The replicas that are there now, and how they are."""
        with self._lock:
            before, self._now = self._now, {one.replica: one for one in statuses}
            for name in before.keys() - self._now.keys():
                self._gone[name] = before[name].store
            for name in self._now:  # it was only late
                self._gone.pop(name, None)
        for status in statuses:
            for launch in status.launches:
                self._on_launch(launch)

    def _run(self) -> None:
        while not self._is_closing.wait(max(_PERIOD_S, len(self._now) / _REPLICAS_PER_S)):
            try:
                broadcast = self._handle.broadcast("status")
                told = broadcast.results(timeout_s=_ANSWER_S, return_exceptions=True)
            except (TimeoutError, RayError, RayServeException) as error:
                logger.info("the replicas did not say how they are: %s", error)
                continue
            except Exception:  # the watch must not end; the next round may do better
                logger.exception("asking the replicas failed in a way that was not foreseen")
                continue
            self.take([one for one in told if isinstance(one, Status)])
