"""Ray Serve's router of our requests: a subject's go to the replica that holds its table.

`RequestRouterConfig(request_router_class=...)` names it. It runs beside each handle, in the
processes that send requests, and they agree without a word: see `rendezvous.py`. The key of a
request is the `session_id` of the handle that it is sent by. Ray asks a replica whose queue is full
before it sends more there, and goes to the next one of the list.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from bootpig_rt.checks import check_int
from bootpig_rt.serving.rendezvous import Rendezvous, by_preference_and_load

_CHOICES = 4
"""Replicas that are asked in turn before Ray waits a little and begins again."""


class SubjectRouter(RequestRouter):
    """Rendezvous by subject with bounded load; requests without a subject go where it is quiet.

    Arguments, through `request_router_kwargs`:
        spill_over: Requests that a replica may have before its subjects go to their next choice.
        is_sticky: False sends every request where it is quiet, to compare with.
    """

    def initialize_state(self, spill_over: int = 3, is_sticky: bool = True, **unknown: Any) -> None:
        """Ray calls this with `request_router_kwargs`.

        Raises:
            ValueError: An unknown argument, or one that is out of range.
        """
        if unknown:
            raise ValueError(f"unknown arguments of the router: {', '.join(sorted(unknown))}")
        self._spill_over = check_int("spill_over", spill_over, 1, 1 << 20)
        self._is_sticky = bool(is_sticky)
        self._rendezvous = Rendezvous(())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray calls this when replicas come or go."""
        super().update_replicas(replicas)
        self._rendezvous = Rendezvous([one.replica_id.unique_id for one in replicas])

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Groups of replicas in the order in which they are asked."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        key = "" if pending_request is None else pending_request.metadata.session_id
        if not key or not self._is_sticky:
            count = min(2, len(candidate_replicas))
            return [random.sample(candidate_replicas, count)]
        replicas = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(one.replica_id) or 0
            for name, one in replicas.items()
        }
        order = [name for name in self._rendezvous.order(key) if name in replicas]
        names = by_preference_and_load(order, loads, spill_over=self._spill_over)
        return [[replicas[name]] for name in names[:_CHOICES]]
