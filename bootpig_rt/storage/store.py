"""SubjectStore: reference tables kept between calls, on the device, on the host and on disk.

The least recently used table of a tier moves down to the next one. A table in use is held by its
run, so moving it never breaks a picture; tables are copied while the store is not locked. A folder
may be shared by processes: its files are written all at once, checked when read, and may vanish at
any time. One store may serve several pipelines and threads; tenants never see each other's tables,
and a table that a subject's file brought along serves that file alone.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from threading import Event, Lock
from typing import Any, TypeAlias

from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.checks import check_int
from bootpig_rt.errors import SubjectMismatch
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceKV
from bootpig_rt.reference.subject import SavedTable, Subject
from bootpig_rt.storage.folder import StoreFolder

logger = logging.getLogger(__name__)

_Address: TypeAlias = tuple[str, str, ReferenceKey]
"""Tenant, backend and device, key."""

_Entry: TypeAlias = tuple[ReferenceKV, Backend]


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


class _Making:
    """A table on its way, for those who wait for it; without one when it failed."""

    def __init__(self) -> None:
        self.ended = Event()
        self.table: ReferenceKV | None = None


class SubjectStore:
    """Reference tables in three tiers, least recently used out first. Safe to use from threads.

    Args:
        device_bytes: For tables on the device; a larger one is used and not kept there.
        host_bytes: For tables in host memory, which left the device or are streamed; a larger one
            is used and not kept there.
        folder: Where tables are kept between processes; None keeps none.

    Raises:
        ParameterError: A size is out of range.
    """

    def __init__(
        self,
        *,
        device_bytes: int = 1 << 30,
        host_bytes: int = 0,
        folder: StoreFolder | None = None,
    ) -> None:
        """Start empty, but for what lies in the folder."""
        most = 1 << 50
        self.device_bytes = check_int(
            "reference_cache_bytes", device_bytes, 0, most, "0: keep none"
        )
        self.host_bytes = check_int("host_cache_bytes", host_bytes, 0, most, "0: keep none")
        self.folder = folder
        self._device: OrderedDict[_Address, _Entry] = OrderedDict()
        self._host: OrderedDict[_Address, _Entry] = OrderedDict()
        self._making: dict[_Address, _Making] = {}
        self._lock = Lock()
        self._stats = StoreStats()

    def stats(self) -> StoreStats:
        """Counters, and the bytes held now."""
        disk_bytes = 0 if self.folder is None else self.folder.size_bytes()
        with self._lock:
            return replace(
                self._stats,
                device_bytes=_held(self._device),
                host_bytes=_held(self._host),
                disk_bytes=disk_bytes,
            )

    def clear(self) -> None:
        """Forget the tables on device and host; the folder stays as it is."""
        with self._lock:
            self._device.clear()
            self._host.clear()

    def table(
        self,
        subject: Subject,
        key: ReferenceKey,
        make: Callable[[], tuple[ReferenceKV, int]],
        *,
        backend: Backend,
        tenant: str = "",
        is_resident: bool = True,
    ) -> tuple[ReferenceKV, int]:
        """A table from the highest tier that has it, or made; made once however many ask.

        Args:
            subject: Whose table; tables that it brought along are looked at as well.
            key: Which table.
            make: Makes it; what it raises goes to its caller, and one of those waiting tries next.
            backend: Where it is used.
            tenant: Whose it is.
            is_resident: It fits the device's budget; otherwise it is streamed.

        Returns:
            The table, and how many passes of the Reference U-Net it took: 0 when it was there.
        """
        address = (tenant, f"{backend.name} {backend.device}", key)
        while True:
            with self._lock:
                found = self._device.get(address)
                if found is not None:
                    self._device.move_to_end(address)
                    self._count(device_hits=1)
                    return found[0], 0
                other = self._making.get(address)
                if other is None:
                    mine = self._making[address] = _Making()
                    break
                self._count(waits=1)
            other.ended.wait()
            if other.table is not None:
                return other.table, 0
        moved: list[tuple[_Address, _Entry]] = []
        try:
            table, passes = self._find_or_make(address, subject, make, backend, is_resident)
            mine.table = table
            moved = self._keep(address, table, backend)
        finally:
            with self._lock:
                del self._making[address]
            mine.ended.set()
        for where, entry in moved:
            self._copy_down(where, entry)
        return table, passes

    def _find_or_make(
        self,
        address: _Address,
        subject: Subject,
        make: Callable[[], tuple[ReferenceKV, int]],
        backend: Backend,
        is_resident: bool,
    ) -> tuple[ReferenceKV, int]:
        tenant, _, key = address
        start = time.perf_counter()
        with self._lock:
            held = self._host.get(address)
            if held is not None:
                self._host.move_to_end(address)
        if held is not None:
            table = held[0]
            if is_resident and not table.is_resident:
                host = backend.download_table(table.data)
                table = _uploaded(SavedTable(key, host), backend, is_resident=True)
            self._count_locked(host_hits=1, load_ms=_ms_since(start))
            return table, 0
        saved = self._brought_along(subject, key) or self._read(key, tenant)
        if saved is None:
            with self._alone(key, tenant):
                saved = self._read(key, tenant)  # by the process that was waited for
                if saved is None:
                    start = time.perf_counter()
                    table, passes = make()
                    table.key.check(key)
                    self._count_locked(misses=1, make_ms=_ms_since(start))
                    self._write(table, backend, tenant)
                    return table, passes
        saved.key.check(key)
        start = time.perf_counter()
        table = _uploaded(saved, backend, is_resident=is_resident)
        self._count_locked(disk_hits=1, load_ms=_ms_since(start))
        return table, 0

    def _brought_along(self, subject: Subject, key: ReferenceKey) -> SavedTable | None:
        for saved in subject.tables:
            if saved.key == key:
                return saved
        for saved in subject.tables:
            logger.info("a table of %r is not used: it %s", subject, saved.key.difference(key))
        return None

    def _alone(self, key: ReferenceKey, tenant: str) -> AbstractContextManager[None]:
        return nullcontext() if self.folder is None else self.folder.making(key, tenant)

    def _read(self, key: ReferenceKey, tenant: str) -> SavedTable | None:
        if self.folder is None:
            return None
        saved, error = self.folder.read(key, tenant)
        if error is not None:
            self._count_locked(disk_errors=1)
        return saved

    def _write(self, table: ReferenceKV, backend: Backend, tenant: str) -> None:
        if self.folder is None:
            return
        try:
            host = backend.download_table(table.data)
        except Exception as error:  # of any runtime; the table itself is good
            logger.warning("the store could not copy a table for its folder: %s", error)
            return
        if self.folder.write(SavedTable(table.key, host), tenant) is not None:
            self._count_locked(disk_errors=1)

    def _keep(
        self, address: _Address, table: ReferenceKV, backend: Backend
    ) -> list[tuple[_Address, _Entry]]:
        """Put a table into its tier; what has no room there moves down or is forgotten.

        Returns:
            Tables that moved to the host tier and are still on the device; see `_copy_down`.
        """
        limit = self.device_bytes if table.is_resident else self.host_bytes
        if table.size_bytes > limit:
            logger.info(
                "reference table of %d bytes is over the store's %d and is not kept",
                table.size_bytes,
                limit,
            )
            return []
        with self._lock:
            tier = self._device if table.is_resident else self._host
            tier[address] = (table, backend)
            tier.move_to_end(address)
            out = _overflow(self._device, self.device_bytes)
            moved = [
                (where, entry)
                for where, entry in out
                if entry[0].size_bytes <= self.host_bytes and where not in self._host
            ]
            self._host.update(moved)
            forgotten = _overflow(self._host, self.host_bytes)
            self._count(moves_down=len(out) + len(forgotten))
            return [(where, entry) for where, entry in moved if self._host.get(where) is entry]

    def _copy_down(self, address: _Address, entry: _Entry) -> None:
        """Bring a table of the host tier to the host; one that cannot be copied is forgotten."""
        table, backend = entry
        copy = None
        try:
            host = backend.download_table(table.data)
            data = backend.upload_table(host, is_resident=False)
            copy = replace(table, data=data, is_resident=False)
        except Exception as error:  # of any runtime; the caller's own table is another one
            logger.warning("the store drops a table that cannot be copied to the host: %s", error)
        finally:
            with self._lock:
                if self._host.get(address) is entry:  # not moved on by another meanwhile
                    if copy is None:
                        del self._host[address]
                    else:
                        self._host[address] = (copy, backend)

    def _count_locked(self, **counts: float) -> None:
        with self._lock:
            self._count(**counts)

    def _count(self, **counts: float) -> None:
        added: dict[str, Any] = {
            name: getattr(self._stats, name) + count for name, count in counts.items()
        }
        self._stats = replace(self._stats, **added)


def _uploaded(saved: SavedTable, backend: Backend, *, is_resident: bool) -> ReferenceKV:
    shapes = tuple((heads, tokens, dim) for *_, heads, tokens, dim in saved.table.shapes())
    if backend.spec.reference_shapes and shapes != backend.spec.reference_shapes:
        raise SubjectMismatch(
            f"a saved reference table has layers (H, M, D) {shapes[:2]}..., expected "
            f"{backend.spec.reference_shapes[:2]}...; encode the subject again"
        )
    size_bytes, lying = saved.table.nbytes, backend.spec.resident_dtype
    if is_resident and lying is not None:  # however it was kept, the device holds it in this type
        entries, references = saved.table.shapes()[0][:2]
        size_bytes = table_bytes(
            shapes, num_entries=entries, num_references=references, dtype=lying
        )
    data = backend.upload_table(saved.table, is_resident=is_resident)
    return ReferenceKV(saved.key, data, size_bytes, is_resident)


def _overflow(tier: OrderedDict[_Address, _Entry], limit: int) -> list[tuple[_Address, _Entry]]:
    """Take the least recently used tables out until the rest fits."""
    total, taken = _held(tier), []
    while total > limit:
        address, entry = tier.popitem(last=False)
        total -= entry[0].size_bytes
        taken.append((address, entry))
    return taken


def _held(tier: OrderedDict[_Address, _Entry]) -> int:
    return sum(table.size_bytes for table, _ in tier.values())


def _ms_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
