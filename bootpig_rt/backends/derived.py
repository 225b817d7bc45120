"""What a backend made of some objects, kept while they live: tables side by side, projected texts.

Batches change whenever a picture joins or leaves; the set of their tables and texts often does not.
Objects are told apart by identity, whatever their order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Layers:
    """Arrays of a device that several runs read: `k_0`, `v_0`, ... of tables or of texts."""

    arrays: Mapping[str, Any]


class Derived(Generic[T]):
    """Keeps the value that was asked for last, and knows those that someone else still holds.

    So beside what runs hold at most one value is kept, and it goes when one of its objects goes, or
    ahead of making another. Safe to use from threads.

    Attributes:
        num_made: How often something was made.
    """

    def __init__(self) -> None:
        """Nothing is made yet."""
        self.num_made = 0
        self._lock = Lock()
        self._known: dict[frozenset[int], _Entry[T]] = {}
        self._last: T | None = None

    def of(self, sources: Sequence[object], make: Callable[[], T]) -> T:
        """The value of a set of objects.

        Args:
            sources: May be referred to weakly; equal sets by identity give the same value.
            make: Makes it, and must not hold the sources in it.
        """
        key = frozenset(map(id, sources))
        with self._lock:
            found = self._known.get(key)
            value = found.value() if found is not None and found.is_alive() else None
            if value is None:
                self._last = None  # gives its memory back, unless a run uses it
                self._known = {k: entry for k, entry in self._known.items() if entry.is_alive()}
                value = make()
                self.num_made += 1
                self._known[key] = _Entry(value, sources, self)
            self._last = value
        return value

    def clear(self) -> None:
        """Forget all; who holds a value keeps it."""
        with self._lock:
            self._known, self._last = {}, None


class _Entry(Generic[T]):
    """A value, and whether its sources are all there."""

    def __init__(self, value: T, sources: Sequence[object], owner: Derived[T]) -> None:
        self.value: weakref.ref[Any] = weakref.ref(value)
        of_owner = weakref.ref(owner)

        def drop(_: object) -> None:
            # Without the lock: this may run inside of `of`, wherever the source's last user goes.
            kept = of_owner()
            if kept is not None and kept._last is self.value():
                kept._last = None

        self._sources = [weakref.ref(source, drop) for source in sources]

    def is_alive(self) -> bool:
        return self.value() is not None and all(one() is not None for one in self._sources)
