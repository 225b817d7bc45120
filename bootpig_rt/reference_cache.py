"""Reference tables that are kept between calls, and made where they are missing."""

from __future__ import annotations

import logging
from collections import OrderedDict
from threading import Lock

from bootpig_rt.backends.base import Backend, IntArray
from bootpig_rt.reference_kv import (
    ReferenceKey,
    ReferenceKV,
    ReferenceSchedule,
    reference_latents,
)
from bootpig_rt.subject import Subject
from bootpig_rt.text import Tokenizer

logger = logging.getLogger(__name__)


class ReferenceCache:
    """The most recently used tables, up to a number of bytes. Safe to use from several threads.

    Args:
        max_bytes: A table larger than this is used once and not kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self.max_bytes = max_bytes
        self._tables: OrderedDict[ReferenceKey, ReferenceKV] = OrderedDict()
        self._lock = Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(table.size_bytes for table in self._tables.values())

    def get(self, key: ReferenceKey) -> ReferenceKV | None:
        """The table of this key, or None."""
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def put(self, table: ReferenceKV) -> None:
        """Keep a table; the least recently used ones leave until all fit."""
        if table.size_bytes > self.max_bytes:
            logger.info(
                "reference table of %d bytes is over the cache's %d and is not kept",
                table.size_bytes,
                self.max_bytes,
            )
            return
        with self._lock:
            self._tables[table.key] = table
            self._tables.move_to_end(table.key)
            total = sum(kept.size_bytes for kept in self._tables.values())
            while total > self.max_bytes:
                _, dropped = self._tables.popitem(last=False)
                total -= dropped.size_bytes

    def clear(self) -> None:
        """Forget all tables."""
        with self._lock:
            self._tables.clear()


def reference_table(
    subject: Subject,
    schedule: ReferenceSchedule,
    solver_timesteps: IntArray,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
    cache: ReferenceCache,
) -> tuple[ReferenceKV, int]:
    """A subject's table, from the cache or from the Reference U-Net.

    Two threads that miss the same table at the same time both compute it, and get equal tables.

    Args:
        subject: Encoded with the backend's pair.
        schedule: Which noise levels.
        solver_timesteps: int64 [T]; read by the schedule `exact` only.
        backend: Makes the table.
        tokenizer: Of the pair.
        cache: Read, and given the table.

    Returns:
        The table, and how many (entry, reference) pairs the Reference U-Net was run on for it.
    """
    config, fingerprint = backend.spec.config, backend.spec.fingerprint
    timesteps = schedule.timesteps(solver_timesteps)
    key = ReferenceKey(
        subject=subject.fingerprint,
        pair=fingerprint,
        schedule=str(schedule),
        timesteps=tuple(timesteps.tolist()),
        ref_scale=config.ref_scale,
    )
    kept = cache.get(key)
    if kept is not None:
        return kept, 0
    if not schedule.is_exact_for(config.reference_timestep):
        logger.info(
            "reference schedule %s is an approximation: this pair was trained with reference "
            "timestep %s",
            schedule,
            config.reference_timestep,
        )
    latents = reference_latents(
        subject.latents,
        schedule,
        timesteps,
        noise_seed=subject.noise_seed,
        noise_schedule=backend.spec.noise_schedule,
    )
    ids = tokenizer([subject.reference_prompt] * subject.num_references)
    made = backend.reference_kv(latents, timesteps, backend.encode_text(ids))
    table = ReferenceKV(
        key=key,
        data=made.data,
        num_entries=len(timesteps),
        num_references=subject.num_references,
        size_bytes=made.size_bytes,
    )
    cache.put(table)
    return table, made.num_passes
