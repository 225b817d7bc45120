"""Tables on the device and on the host, the least recently used of each first."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from bootpig_rt.backends.base import Backend
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable

Address: TypeAlias = tuple[str, str, ReferenceKey]
"""Tenant, backend and device, key."""

Kept: TypeAlias = "tuple[ReferenceTable, weakref.ref[Backend]]"
"""A table, and who can copy it. No tier keeps a pipeline alive."""

Tier: TypeAlias = OrderedDict[Address, Kept]


@dataclass
class MemoryTiers:
    """What lies where. It moves entries and copies nothing; whoever uses it holds a lock.

    Attributes:
        device_bytes, host_bytes: The most that each tier holds.
        device, host: The least recently used first.
    """

    device_bytes: int
    host_bytes: int
    device: Tier = field(default_factory=OrderedDict)
    host: Tier = field(default_factory=OrderedDict)

    def put(self, address: Address, kept: Kept) -> tuple[list[tuple[Address, Kept]], int]:
        """Put a table that fits into its tier; what has no room there moves down or is forgotten.

        Returns:
            What is in the host's tier now and still has to be copied there, and how many tables
            left a tier.
        """
        tier = self.device if kept[0].is_resident else self.host
        tier[address] = kept
        tier.move_to_end(address)
        out = _overflow(self.device, self.device_bytes)
        moved = [
            (where, one)
            for where, one in out
            if one[0].size_bytes <= self.host_bytes and where not in self.host
        ]
        self.host.update(moved)
        forgotten = _overflow(self.host, self.host_bytes)
        left = [(where, one) for where, one in moved if self.host.get(where) is one]
        return left, len(out) + len(forgotten)

    def replace_on_host(self, address: Address, kept: Kept, copy: ReferenceTable | None) -> None:
        """Put the copy in the place of what moved down, if that is still there; None forgets it."""
        if self.host.get(address) is not kept:  # moved on by another meanwhile
            return
        if copy is None:
            del self.host[address]
        else:
            self.host[address] = (copy, kept[1])

    def forget(self, is_meant: Callable[[Address, Kept], bool]) -> None:
        """Forget some tables; pictures that draw with them keep theirs."""
        for tier in (self.device, self.host):
            for address in [one for one, kept in tier.items() if is_meant(one, kept)]:
                del tier[address]


def held_bytes(tier: Tier) -> int:
    """Of all tables of a tier."""
    return sum(table.size_bytes for table, _ in tier.values())


def _overflow(tier: Tier, limit: int) -> list[tuple[Address, Kept]]:
    """Take the least recently used tables out until the rest fits."""
    total, taken = held_bytes(tier), []
    while total > limit:
        address, kept = tier.popitem(last=False)
        total -= kept[0].size_bytes
        taken.append((address, kept))
    return taken
