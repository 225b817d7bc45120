"""Work spread over processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Items for each process that are given out before the first of them is asked for."""

_kept: Any = None
"""In a worker: what it does. Sent once a process, for it may hold all drawings."""


def spread(work: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """What `work` makes of each item, in order; in processes if `workers` is above 1.

    Items are taken as they are needed, a few for each process ahead, so they may be more than
    memory holds.
    """
    if workers == 1:
        yield from map(work, items)
        return
    # Fresh processes: a fork would copy the locks of whatever threads the caller has running.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_keep, initargs=(work,))
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(pool.submit(_call, item))
            if len(running) > AHEAD * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _keep(work: Callable[[Any], Any]) -> None:
    global _kept
    _kept = work


def _call(item: Any) -> Any:
    return _kept(item)
