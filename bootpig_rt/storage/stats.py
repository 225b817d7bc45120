"""What a store of subjects counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StoreStats:
    """Counters since the store was made.

    Attributes:
        device_hits: Tables found on the device.
        host_hits: Tables found on the host.
        disk_hits: Tables read from the folder or from a subject's file.
        misses: Tables that had to be made.
        waits: Callers that waited for another's table in place of making it again.
        moves_down: Tables that left the device or the host for lack of room.
        disk_errors: Files that could not be written or read; each is logged.
        device_bytes: Held now.
        host_bytes: Held now.
        disk_bytes: Held now.
        make_ms: Time in reference passes.
        load_ms: Time in moving tables up.
    """

    device_hits: int = 0
    host_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    waits: int = 0
    moves_down: int = 0
    disk_errors: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    make_ms: float = 0.0
    load_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
