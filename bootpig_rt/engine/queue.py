"""Who waits, and whose turn it is: priorities first, then tenants in turn, then who came first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterator, Sequence

from bootpig_rt.engine.batch import Picture


class Queue:
    """Pictures that have not begun. Not locked: the engine does that.

    Attributes:
        is_used: Something waits, or was cancelled while it did.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.is_used = False
        self._of_tenant: OrderedDict[str, deque[Picture]] = OrderedDict()

    def __iter__(self) -> Iterator[Picture]:
        """All that wait and whose job has not ended."""
        for queue in self._of_tenant.values():
            yield from (picture for picture in queue if not picture.job.done())

    def __len__(self) -> int:
        """How many wait."""
        return sum(1 for _ in self)

    def add(self, pictures: Sequence[Picture]) -> None:
        """Put the pictures of one tenant behind those of the same or a higher priority."""
        for picture in pictures:
            queue = self._of_tenant.setdefault(picture.job.tenant, deque())
            place = len(queue)
            while place and queue[place - 1].job.priority < picture.job.priority:
                place -= 1
            queue.insert(place, picture)
            picture.waits = self.is_used = True

    def take(self, picture: Picture) -> None:
        """It begins; its tenant goes to the end of the line."""
        self._of_tenant[picture.job.tenant].remove(picture)
        picture.waits = False
        self.is_used = any(self._of_tenant.values())
        self._of_tenant.move_to_end(picture.job.tenant)

    def heads(self, skipped: Container[Picture]) -> list[Picture]:
        """The next picture of each tenant, still in its place, in the order of their turns.

        Args:
            skipped: Pictures whose table is on its way: others of their tenant go ahead.
        """
        self._drop_ended()
        heads = (
            next((picture for picture in queue if picture not in skipped), None)
            for queue in self._of_tenant.values()
        )
        ready = [picture for picture in heads if picture is not None]
        return sorted(ready, key=lambda one: -one.job.priority)

    def _drop_ended(self) -> None:
        for tenant, queue in list(self._of_tenant.items()):
            if any(picture.job.done() for picture in queue):
                queue = deque(picture for picture in queue if not picture.job.done())
                self._of_tenant[tenant] = queue
            if not queue:
                del self._of_tenant[tenant]
        self.is_used = bool(self._of_tenant)
