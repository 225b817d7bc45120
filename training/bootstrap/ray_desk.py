"""Where a Ray cluster fetches blocks of items: as many lie there as its memory bears.

Ray Data gets a ticket for each block beforehand. What fetches the block of a ticket waits until it
is there, and a block stays until the outcomes of all its items have come back, so that a ticket may
be given out again. A thread of this process reads the items when there is room for them.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any

from bootpig_rt.errors import EngineLost
from bootpig_rt.training.bootstrap.stage import Items, Outcome

Outcomes = tuple[int, tuple[Outcome, ...]]


class Desk:
    """The blocks of one stage; a context, in which they are read.

    Args:
        ray: The module, connected.
        items: Of the stage.
        size: Items of a block.
        most_bytes: Of the items that lie there or are being worked on; one block may always.
        num_fetching: So many fetch at once.

    Attributes:
        num_blocks: So many tickets there are.
    """

    def __init__(
        self, ray: Any, items: Items, *, size: int, most_bytes: int, num_fetching: int
    ) -> None:
        self.num_blocks = max(1, -(-len(items) // size))
        self.num_fetching = num_fetching
        self._ray, self._items, self._size, self._most = ray, items, size, most_bytes
        # Whoever fetches waits in a call of its own; twice as many, for those that are given again.
        shelf = ray.remote(num_cpus=0, max_concurrency=2 * num_fetching + 8)(_Shelf)
        self._shelf: Any = shelf.remote()
        self._changed = threading.Condition()
        self._held = 0
        self._left: dict[int, int] = {}  # items of a block that have not come back
        self._bytes: dict[int, int] = {}
        self._block_of: dict[int, int] = {}
        self._is_over = False
        self._error: BaseException | None = None
        self._reader = threading.Thread(target=self._read, name="desk", daemon=True)

    def __enter__(self) -> Desk:
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._reader.join()
        self._ray.kill(self._shelf)

    def tickets(self) -> list[Any]:
        """Tables of one row each, the number of a block."""
        import pyarrow

        return [pyarrow.table({"ticket": [number]}) for number in range(self.num_blocks)]

    def fetching(self) -> dict[str, Any]:
        """The other arguments of `fetch`, on whatever machine it is called."""
        return {"ray": self._ray, "shelf": self._shelf}

    def once(self, outcomes: Iterable[Outcomes]) -> Iterator[Outcomes]:
        """Pass on the outcomes of each item once, and make room for others.

        Raises:
            EngineLost: Some did not come back.
            Exception: What reading the items raised.
        """
        for index, found in outcomes:
            if self._take_note(index):
                yield index, found
        if self._error is not None:
            raise self._error
        if self._block_of:
            raise EngineLost(
                f"{len(self._block_of)} items did not come back from the cluster, such as "
                f"{min(self._block_of)}; run the same command again: what is done is kept"
            )

    def _take_note(self, index: int) -> bool:
        """An item came back; False if it had before."""
        with self._changed:
            block = self._block_of.pop(index, None)
            if block is None:
                return False
            self._left[block] -= 1
            if not self._left[block]:
                self._held -= self._bytes.pop(block)
                self._shelf.drop.remote(block)
                self._changed.notify_all()
            return True

    def _read(self) -> None:
        number = 0
        try:
            items = iter(self._items)
            while block := list(islice(items, self._size)):
                pickled = [pickle.dumps(item) for item in block]
                size = sum(map(len, pickled))
                with self._changed:
                    self._changed.wait_for(partial(self._has_room, size))
                    if self._is_over:
                        return
                    self._held += size
                    self._left[number], self._bytes[number] = len(block), size
                    self._block_of.update((item.index, number) for item in block)
                reference = self._ray.put(table_of(pickled))
                self._ray.get(self._shelf.lay.remote(number, [reference]))
                number += 1
        except BaseException as error:  # of whatever reads items; raised where outcomes are taken
            self._error = error
        if not self._is_over:
            self._ray.get(self._shelf.end.remote(number))

    def _has_room(self, size: int) -> bool:
        return self._is_over or not self._held or self._held + size <= self._most


class _Shelf:
    """An actor that holds references to blocks; its methods wait side by side."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[Any]] = {}
        self._changed = threading.Condition()
        self._count: int | None = None
        self._dropped: set[int] = set()

    def lay(self, number: int, block: list[Any]) -> None:
        """Lay down a block, as a list of the reference to it: Ray would fetch a bare one."""
        with self._changed:
            self._blocks[number] = block
            self._changed.notify_all()

    def end(self, count: int) -> None:
        """There are no more than so many."""
        with self._changed:
            self._count = count
            self._changed.notify_all()

    def drop(self, number: int) -> None:
        """All of a block came back."""
        with self._changed:
            self._dropped.add(number)
            self._blocks.pop(number, None)

    def take(self, number: int) -> list[Any]:
        """A block once it is there; nothing where it is not needed any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    number in self._blocks
                    or number in self._dropped
                    or (self._count is not None and number >= self._count)
                )
            )
            return self._blocks.get(number, [])


def fetch(ticket: Any, ray: Any, shelf: Any) -> Any:
    """The block of a ticket, once it is there; an empty one where it is not needed any more."""
    (number,) = ticket["ticket"].to_pylist()
    found = ray.get(shelf.take.remote(number))
    return ray.get(found[0]) if found else table_of([])


def table_of(rows: list[bytes]) -> Any:
    """Pickled things as Ray Data sends them: a pyarrow table with the column `data`."""
    import pyarrow

    return pyarrow.table({"data": pyarrow.array(rows, pyarrow.large_binary())})
