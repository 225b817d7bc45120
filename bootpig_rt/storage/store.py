"""SubjectStore: reference tables kept between requests, on the device, on the host and on disk.

The least recently used table of a tier moves down to the next one. A table in use is held by its
picture, so moving it never breaks one; tables are copied, read and written while the store is not
locked. A table that is nowhere is made by whoever gets its `Claim`: one at a time, over all threads
and processes, and nobody has to wait for it. One store may serve several pipelines; tenants never
see each other's tables, and a table that a subject's file brought along serves that file alone.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any, TypeAlias

from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.errors import SubjectMismatch
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.storage.claim import Claim as FolderClaim
from bootpig_rt.storage.folder import StoreFolder, default_folder
from bootpig_rt.storage.stats import StoreStats

logger = logging.getLogger(__name__)

_Address: TypeAlias = tuple[str, str, ReferenceKey]
"""Tenant, backend and device, key."""

_Kept: TypeAlias = "tuple[ReferenceTable, weakref.ref[Backend]]"
"""A table, and who can copy it. The store keeps no pipeline alive."""

_STREAMED_BYTES = 4 << 30
"""Room for two tables of Stable Diffusion 2.1: 1.4 GB each at 512 px, float16, 30 steps."""

_LOOK_AGAIN_S = 0.02


class Claim:
    """The right to make a table, held until it is kept or released. Made by `SubjectStore.look`."""

    def __init__(self, store: SubjectStore, address: _Address, folder: FolderClaim | None) -> None:
        """Held from now on."""
        self._store, self._address, self._folder = store, address, folder
        self._is_held = True

    def keep(self, table: ReferenceTable, backend: Backend, make_ms: float) -> None:
        """The table is made: it goes to its tier at once, and to disk behind the caller's back.

        Raises:
            SubjectMismatch: It is another table than the one that was claimed.
        """
        if table.key != self._address[2]:
            raise table.key.mismatch(self._address[2])
        self._store._keep(self._address, table, backend)
        self._store._count(misses=1, make_ms=make_ms)
        if self._folder is None:
            self.release()
        else:
            self._store._later(self._write, table, backend)

    def release(self) -> None:
        """Let others make the table. May be called twice."""
        if self._is_held:
            self._is_held = False
            if self._folder is not None:
                self._folder.release()
            self._store._forget_claim(self._address)

    def _write(self, table: ReferenceTable, backend: Backend) -> None:
        try:
            self._store._write(table, backend, self._address[0])
        finally:
            self.release()


class SubjectStore:
    """Reference tables in three tiers, least recently used out first. Safe to use from threads.

    Args:
        options: Bytes of the tiers and the folder, and how tables are made.
    """

    def __init__(self, options: TableOptions | None = None) -> None:
        """Start empty, but for what lies in the folder."""
        self.options = options = TableOptions() if options is None else options
        path = default_folder() if options.folder is None else Path(options.folder)
        self.folder = None if path is None else StoreFolder(path, options.folder_bytes)
        self.device_bytes = options.device_bytes
        streamed = 0 if options.budget_bytes is None else _STREAMED_BYTES
        self.host_bytes = streamed if options.host_bytes is None else options.host_bytes
        self._device: OrderedDict[_Address, _Kept] = OrderedDict()
        self._host: OrderedDict[_Address, _Kept] = OrderedDict()
        # Tables that somebody holds, kept or not: whoever needs one shares it.
        self._alive: weakref.WeakValueDictionary[_Address, ReferenceTable] = (
            weakref.WeakValueDictionary()
        )
        self._claimed: set[_Address] = set()
        self._changed = Condition()
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._disk: ThreadPoolExecutor | None = None
        self._writes: list[Future[None]] = []

    def stats(self) -> StoreStats:
        """Counters, and the bytes held now."""
        disk_bytes = 0 if self.folder is None else self.folder.size_bytes()
        with self._changed:
            counts: dict[str, Any] = {
                name: count if name.endswith("_ms") else int(count)
                for name, count in self._counts.items()
            }
            return StoreStats(
                **counts,
                device_bytes=_held(self._device),
                host_bytes=_held(self._host),
                disk_bytes=disk_bytes,
            )

    def clear(self) -> None:
        """Forget the tables on device and host; the folder stays as it is."""
        with self._changed:
            self._device.clear()
            self._host.clear()

    def flush(self) -> None:
        """Wait until the tables made so far are on disk."""
        with self._changed:
            writes, self._writes = self._writes, []
        for write in writes:
            write.result()

    def forget(self, backend: Backend) -> None:
        """Forget the tables that lie on a backend's device: it is closing."""
        with self._changed:
            for tier in (self._device, self._host):
                for address in [a for a, (_, owner) in tier.items() if owner() is backend]:
                    del tier[address]

    def forget_subject(self, fingerprint: str, tenant: str = "") -> None:
        """Forget the tables of a subject of one tenant, on every tier. Pictures keep theirs."""
        self.flush()
        with self._changed:
            for tier in (self._device, self._host):
                addresses = [a for a in tier if a[0] == tenant and a[2].subject == fingerprint]
                for address in addresses:
                    del tier[address]
        if self.folder is not None:
            self.folder.remove_tables(fingerprint, tenant)

    def held(
        self, key: ReferenceKey, *, backend: Backend, tenant: str = ""
    ) -> ReferenceTable | None:
        """A table that is on the device or in use, at once; None where there is none."""
        address = _address(tenant, backend, key)
        with self._changed:
            kept = self._device.get(address)
            if kept is not None:
                self._device.move_to_end(address)
            found = None if kept is None else kept[0]
            if found is None and address not in self._host:
                found = self._alive.get(address)
            if found is not None:
                self._counts["device_hits"] += 1
            return found

    def look(
        self,
        subject: Subject,
        key: ReferenceKey,
        *,
        backend: Backend,
        tenant: str = "",
        is_resident: bool = True,
    ) -> ReferenceTable | Claim | None:
        """A table from the highest tier that has it; the right to make it where none has.

        Reads the disk and copies to the device, and waits for nobody.

        Args:
            subject: Whose table; tables that it brought along are looked at as well.
            key: Which table.
            backend: Where it is used.
            tenant: Whose it is.
            is_resident: It fits the device's budget; otherwise it is streamed.

        Returns:
            The table, a claim, or None: another thread or process is making it, so look again.
        """
        found = self.held(key, backend=backend, tenant=tenant)
        if found is not None:
            return found
        address = _address(tenant, backend, key)
        with self._changed:
            if address in self._claimed:
                return None
            self._claimed.add(address)
        claim = Claim(self, address, None)
        try:
            table = self._from_host(address, backend, is_resident=is_resident)
            if table is None:
                saved = self._brought_along(subject, key) or self._read(key, tenant)
                if saved is None and self.folder is not None:
                    folder = self.folder.claim(key, tenant)
                    if folder is None:
                        claim.release()
                        return None
                    claim._folder = folder
                    saved = self._read(key, tenant)  # by the process that held it before
                if saved is None:
                    return claim
                if saved.key != key:
                    raise saved.key.mismatch(key)
                start = time.perf_counter()
                table = _uploaded(saved, backend, is_resident=is_resident)
                self._count(disk_hits=1, load_ms=_ms_since(start))
            self._keep(address, table, backend)
        except BaseException:
            claim.release()
            raise
        claim.release()
        return table

    def look_later(
        self,
        subject: Subject,
        key: ReferenceKey,
        *,
        backend: Backend,
        tenant: str = "",
        is_resident: bool = True,
    ) -> Future[ReferenceTable | Claim | None]:
        """`look` for who must not wait for a disk: on a thread of the store, where it has one."""
        look = partial(
            self.look, subject, key, backend=backend, tenant=tenant, is_resident=is_resident
        )
        if self.folder is not None:
            return self._thread().submit(look)
        done: Future[ReferenceTable | Claim | None] = Future()
        try:
            done.set_result(look())
        except Exception as error:  # whoever asks the future gets it
            done.set_exception(error)
        return done

    def table(
        self,
        subject: Subject,
        key: ReferenceKey,
        make: Callable[[], tuple[ReferenceTable, int]],
        *,
        backend: Backend,
        tenant: str = "",
        is_resident: bool = True,
    ) -> tuple[ReferenceTable, int]:
        """`look` for who can wait: a table, found or made; made once however many ask.

        Args:
            subject: Whose table.
            key: Which table.
            make: Makes it; what it raises goes to its caller, and one of those waiting tries next.
            backend: Where it is used.
            tenant: Whose it is.
            is_resident: It fits the device's budget; otherwise it is streamed.

        Returns:
            The table, and how many passes of the Reference U-Net it took: 0 when it was there.
        """
        has_waited = False
        while True:
            found = self.look(subject, key, backend=backend, tenant=tenant, is_resident=is_resident)
            if isinstance(found, ReferenceTable):
                return found, 0
            if found is not None:
                break
            if not has_waited:
                has_waited = True
                self._count(waits=1)
            with self._changed:
                self._changed.wait(_LOOK_AGAIN_S)
        start = time.perf_counter()
        try:
            table, passes = make()
            found.keep(table, backend, _ms_since(start))
        except BaseException:
            found.release()
            raise
        return table, passes

    def _from_host(
        self, address: _Address, backend: Backend, *, is_resident: bool
    ) -> ReferenceTable | None:
        start = time.perf_counter()
        with self._changed:
            kept = self._host.get(address)
            if kept is None:
                return None
            self._host.move_to_end(address)
        table = kept[0]
        if is_resident and not table.is_resident:
            host = backend.download_table(table.data)
            table = _uploaded(ReferenceTable.on_host(table.key, host), backend, is_resident=True)
        self._count(host_hits=1, load_ms=_ms_since(start))
        return table

    def _brought_along(self, subject: Subject, key: ReferenceKey) -> ReferenceTable | None:
        for saved in subject.tables:
            if saved.key == key:
                return saved
        for saved in subject.tables:
            difference = saved.key.difference(key)
            logger.info("a table of %.12s is not used: it %s", subject.fingerprint, difference)
        return None

    def _read(self, key: ReferenceKey, tenant: str) -> ReferenceTable | None:
        if self.folder is None:
            return None
        saved, error = self.folder.read(key, tenant)
        if error is not None:
            self._count(disk_errors=1)
        return saved

    def _write(self, table: ReferenceTable, backend: Backend, tenant: str) -> None:
        assert self.folder is not None
        try:
            host = backend.download_table(table.data)
        except Exception as error:  # of any runtime; the table itself is good
            logger.warning("the store could not copy a table for its folder: %s", error)
            return
        if self.folder.write(ReferenceTable.on_host(table.key, host), tenant) is not None:
            self._count(disk_errors=1)

    def _thread(self) -> ThreadPoolExecutor:
        with self._changed:
            if self._disk is None:
                self._disk = ThreadPoolExecutor(1, thread_name_prefix="bootpig-store")
            return self._disk

    def _later(self, work: Callable[..., None], *args: object) -> None:
        write = self._thread().submit(work, *args)
        with self._changed:
            self._writes = [one for one in self._writes if not one.done()]
            self._writes.append(write)

    def _forget_claim(self, address: _Address) -> None:
        with self._changed:
            self._claimed.discard(address)
            self._changed.notify_all()

    def _keep(self, address: _Address, table: ReferenceTable, backend: Backend) -> None:
        """Put a table into its tier; what has no room there moves down or is forgotten."""
        limit = self.device_bytes if table.is_resident else self.host_bytes
        with self._changed:
            self._alive[address] = table
        if table.size_bytes > limit:
            logger.info(
                "reference table of %d bytes is over the store's %d and is not kept",
                table.size_bytes,
                limit,
            )
            return
        with self._changed:
            tier = self._device if table.is_resident else self._host
            tier[address] = (table, weakref.ref(backend))
            tier.move_to_end(address)
            out = _overflow(self._device, self.device_bytes)
            moved = [
                (where, kept)
                for where, kept in out
                if kept[0].size_bytes <= self.host_bytes and where not in self._host
            ]
            self._host.update(moved)
            forgotten = _overflow(self._host, self.host_bytes)
            self._counts["moves_down"] += len(out) + len(forgotten)
            moved = [(where, kept) for where, kept in moved if self._host.get(where) is kept]
        for where, kept in moved:
            self._copy_down(where, kept)

    def _copy_down(self, address: _Address, kept: _Kept) -> None:
        """Bring a table of the host tier to the host; one that cannot be copied is forgotten."""
        table, backend = kept[0], kept[1]()
        copy = None
        try:
            if backend is not None:
                host = backend.download_table(table.data)
                data = backend.upload_table(host, is_resident=False)
                copy = replace(table, data=data, is_resident=False)
        except Exception as error:  # of any runtime; the caller's own table is another one
            logger.warning("the store drops a table that cannot be copied to the host: %s", error)
        finally:
            with self._changed:
                if self._host.get(address) is kept:  # not moved on by another meanwhile
                    if copy is None:
                        del self._host[address]
                    else:
                        self._host[address] = (copy, kept[1])

    def _count(self, **counts: float) -> None:
        with self._changed:
            for name, count in counts.items():
                self._counts[name] += count


def _address(tenant: str, backend: Backend, key: ReferenceKey) -> _Address:
    return tenant, f"{backend.name} {backend.device}", key


def _uploaded(saved: ReferenceTable, backend: Backend, *, is_resident: bool) -> ReferenceTable:
    shapes = tuple((heads, tokens, dim) for *_, heads, tokens, dim in saved.data.shapes())
    if backend.spec.reference_shapes and shapes != backend.spec.reference_shapes:
        raise SubjectMismatch(
            f"a saved reference table has layers (H, M, D) {shapes[:2]}..., expected "
            f"{backend.spec.reference_shapes[:2]}...; encode the subject again"
        )
    size_bytes, lying = saved.size_bytes, backend.spec.resident_dtype
    if is_resident and lying is not None:  # however it was kept, the device holds it in this type
        entries, references = saved.data.shapes()[0][:2]
        size_bytes = table_bytes(
            shapes, num_entries=entries, num_references=references, dtype=lying
        )
    data = backend.upload_table(saved.data, is_resident=is_resident)
    return ReferenceTable(saved.key, data, size_bytes, is_resident)


def _overflow(tier: OrderedDict[_Address, _Kept], limit: int) -> list[tuple[_Address, _Kept]]:
    """Take the least recently used tables out until the rest fits."""
    total, taken = _held(tier), []
    while total > limit:
        address, kept = tier.popitem(last=False)
        total -= kept[0].size_bytes
        taken.append((address, kept))
    return taken


def _held(tier: OrderedDict[_Address, _Kept]) -> int:
    return sum(table.size_bytes for table, _ in tier.values())


def _ms_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
