"""Work spread over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_kept: Any = None
"""In a worker: what it does. Sent once a process, for it may hold all drawings."""


def spread(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """What `work` makes of each item, in order; in processes if `workers` is above 1."""
    if workers == 1:
        yield from map(work, items)
        return
    # Fresh processes: a fork would copy the locks of whatever threads the caller has running.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_keep, initargs=(work,))
    try:
        yield from pool.map(_call, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _keep(work: Callable[[Any], Any]) -> None:
    global _kept
    _kept = work


def _call(item: Any) -> Any:
    return _kept(item)
