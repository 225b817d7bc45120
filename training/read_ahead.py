"""Batches that are read while the device computes: by threads, in any order, given out as asked.

What is read for a batch is a function of its samples and its random streams, so reading ahead
changes no number. Knows nothing about what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bootpig_rt.training.draws import Draws

T = TypeVar("T")

Read = Callable[[Tensor, Draws], T]
"""Samples [B] and their random streams -> what a batch is made of; runs in any thread."""


class ReadAhead(Generic[T]):
    """Reads batches before they are asked for.

    Args:
        read: What is done for each batch.
        threads: So many batches are read at once, and so many ahead; 0 reads when asked.
    """

    def __init__(self, read: Read[T], threads: int) -> None:
        self._read, self._threads = read, threads
        self._pool = ThreadPoolExecutor(threads, "read-ahead") if threads else None
        self._pending: dict[tuple[tuple[int, ...], ...], Future[T]] = {}

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Begin to read the first of the batches that will be asked for, in this order."""
        if self._pool is None:
            return
        for indices, draws in islice(upcoming, self._threads):
            if draws.key not in self._pending:
                future = self._pool.submit(self._read, indices, draws.of_reading())
                self._pending[draws.key] = future

    def get(self, indices: Tensor, draws: Draws) -> T:
        """What was read for a batch, or is read now.

        Raises:
            Exception: Whatever reading it raised, in whichever thread.
        """
        future = self._pending.pop(draws.key, None)
        if future is not None:
            return future.result()
        with torch.autocast("cpu", enabled=False):  # as in a thread
            return self._read(indices, draws.of_reading())


def each_ahead(read: Callable[[int], T], items: Iterable[int], threads: int) -> Iterator[T]:
    """What `read` makes of each item, in order, made by threads; a few are held at a time."""
    pool = ThreadPoolExecutor(threads, "read-ahead")
    try:
        waiting: list[Future[T]] = []
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > 2 * threads:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)
