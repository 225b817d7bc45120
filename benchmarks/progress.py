"""A progress bar for suites; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from bootpig_rt.benchmarks.settings import Progress


@contextmanager
def bar(name: str) -> Iterator[Progress]:
    """A bar that a suite's `progress` moves."""
    with tqdm(desc=name, disable=None, leave=False) as shown:

        def progress(what: str, done: int, total: int) -> None:
            shown.total = total
            shown.n = done
            shown.set_description(f"{name}: {what}")

        yield progress
