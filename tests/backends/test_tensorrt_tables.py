"""Reference tables of the TensorRT backend, with host memory in the place of a device's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.cuda.memory import DeviceArray, Event, PinnedArray
from bootpig_rt.backends.host_table import HostTable, pack_table
from bootpig_rt.backends.tensorrt.tables import (
    TableWindow,
    download_table,
    finish_table,
    upload_table,
)
from bootpig_rt.errors import NumericalError

ENTRIES, REFERENCES = 3, 2
SHAPES = {"k_0": (2, 4, 8), "v_0": (2, 4, 8), "k_1": (1, 2, 8), "v_1": (1, 2, 8)}


class HostMemory:
    """What tables need of `Cuda`, on the host; counts what is not freed."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def allocate(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(nbytes)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return DeviceArray(self, shape, dtype)  # type: ignore[arg-type]

    def upload(self, array: Any, dtype: Any = None) -> DeviceArray:
        host = np.ascontiguousarray(array, dtype=dtype)
        target = self.empty(host.shape, host.dtype)
        self.copy_in(host, target)
        return target

    def download(self, source: DeviceArray) -> Any:
        host = np.empty(source.shape, source.dtype)
        ctypes.memmove(host.ctypes.data, source.address, host.nbytes)
        return host

    def copy(self, source: int, target: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def copy_in(self, host: Any, target: DeviceArray) -> None:
        ctypes.memmove(target.address, np.ascontiguousarray(host).ctypes.data, host.nbytes)

    allocate_pinned, free_pinned = allocate, free

    def pinned(self, nbytes: int) -> PinnedArray:
        return PinnedArray(self, nbytes)  # type: ignore[arg-type]

    def create_event(self) -> list[Any]:
        return []

    def destroy_event(self, handle: Any) -> None:
        handle.clear()

    def event(self) -> Event:
        return Event(self)  # type: ignore[arg-type]

    def copy_ahead(self, source: int, target: int, nbytes: int) -> None:
        self.copy(source, target, nbytes)

    def mark(self, event: Event, *, ahead: bool) -> None:
        pass

    def hold(self, event: Event, *, ahead: bool) -> None:
        pass

    def wait_for(self, event: Event) -> None:
        pass


class TwoStreams(HostMemory):
    """Streams that do nothing ahead of the moment at which they must: an order that was not asked
    for is an order that will not be.

    Args:
        eager: The stream that runs as soon as it may: `steps`, `copies` or none.
    """

    def __init__(self, eager: str) -> None:
        super().__init__()
        self.eager = eager
        self.waiting: dict[str, list[Any]] = {"steps": [], "copies": []}
        self.reached: set[int] = set()
        self.marks = 0
        self.waits_of_host = 0

    def put(self, stream: str, kind: str, what: Any) -> None:
        self.waiting[stream].append((kind, what))
        if self.eager in self.waiting:
            self.run(self.eager)

    def run(self, stream: str) -> None:
        """As far as the events allow that were reached."""
        queue = self.waiting[stream]
        while queue and not (queue[0][0] == "hold" and queue[0][1] not in self.reached):
            kind, what = queue.pop(0)
            if kind == "do":
                what()
            elif kind == "mark":
                self.reached.add(what)

    def finish(self) -> None:
        while any(self.waiting.values()):
            before = sum(map(len, self.waiting.values()))
            for stream in self.waiting:
                self.run(stream)
            assert sum(map(len, self.waiting.values())) < before, "the streams wait for each other"

    def copy(self, source: int, target: int, nbytes: int) -> None:
        self.put("steps", "do", lambda: ctypes.memmove(target, source, nbytes))

    def copy_ahead(self, source: int, target: int, nbytes: int) -> None:
        self.put("copies", "do", lambda: ctypes.memmove(target, source, nbytes))

    def mark(self, event: Event, *, ahead: bool) -> None:
        self.marks += 1
        event.handle[:] = [self.marks]
        self.put("copies" if ahead else "steps", "mark", self.marks)

    def hold(self, event: Event, *, ahead: bool) -> None:
        if event.handle:  # as marked last, or not at all
            self.put("copies" if ahead else "steps", "hold", event.handle[0])

    def wait_for(self, event: Event) -> None:
        self.waits_of_host += 1
        while event.handle and event.handle[0] not in self.reached:
            before = sum(map(len, self.waiting.values()))
            self.run("copies")
            if event.handle[0] not in self.reached:
                self.run("steps")
            assert sum(map(len, self.waiting.values())) < before, "the host waits for ever"


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


def made(memory: HostMemory, dtype: Any, native: str = "float16", seed: int = 0) -> Any:
    """A table as the reference pass leaves it, and its numbers."""
    rng = np.random.default_rng(seed)
    rows = ENTRIES * REFERENCES
    numbers = {
        name: rng.standard_normal((rows, *shape)).astype(native) for name, shape in SHAPES.items()
    }
    layers = {name: memory.upload(array) for name, array in numbers.items()}
    table = finish_table(memory, layers, entries=ENTRIES, references=REFERENCES, dtype=dtype)
    return table, numbers


def entry_of(host: HostTable, index: int) -> dict[str, Any]:
    pairs = host.entry(index)
    return {f"{kind}_{i}": pair["kv".index(kind)] for i, pair in enumerate(pairs) for kind in "kv"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_of_the_engine_are_kept_as_they_are(memory: HostMemory, dtype: Any) -> None:
    table, numbers = made(memory, dtype)
    assert table.size_bytes == sum(array.nbytes for array in numbers.values())
    host = download_table(memory, table)
    assert host.dtype == dtype
    for name, array in entry_of(host, 1).items():
        assert np.array_equal(array, numbers[name][2:4].astype(np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8", "int8"])
def test_a_narrower_type_rounds_what_the_engine_reads(memory: HostMemory, dtype: Any) -> None:
    table, numbers = made(memory, dtype)
    wide = {
        name: array.astype(np.float32).reshape(ENTRIES, REFERENCES, *array.shape[1:])
        for name, array in numbers.items()
    }
    expected = pack_table([(wide["k_0"], wide["v_0"]), (wide["k_1"], wide["v_1"])], dtype)
    host = download_table(memory, table)
    for ours, theirs in zip(host.layers, expected.layers, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert np.array_equal(left.values, right.values)
    on_device = memory.download(table.layers["k_1"])
    rounded = np.concatenate([entry_of(expected, index)["k_1"] for index in range(ENTRIES)])
    assert np.array_equal(on_device, rounded.astype(np.float16))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_tables_of_no_numbers_are_refused(memory: HostMemory, bad: float, dtype: Any) -> None:
    rows = ENTRIES * REFERENCES
    layers = {
        name: memory.upload(np.full((rows, *shape), bad, np.float16))
        for name, shape in SHAPES.items()
    }
    with pytest.raises(NumericalError, match="NaN or Inf"):
        finish_table(memory, layers, entries=ENTRIES, references=REFERENCES, dtype=dtype)


def test_a_table_comes_back_from_the_host_unchanged(memory: HostMemory) -> None:
    table, numbers = made(memory, "float16")
    again = upload_table(memory, download_table(memory, table), "float16", is_resident=True)
    assert (again.entries, again.references, again.is_resident) == (ENTRIES, REFERENCES, True)
    for name, array in numbers.items():
        assert np.array_equal(memory.download(again.layers[name]), array)


@pytest.mark.parametrize("first_is_resident", [True, False])
def test_a_window_shows_the_entries_of_the_step(
    memory: HostMemory, first_is_resident: bool
) -> None:
    first, first_numbers = made(memory, "float16", seed=1)
    second, second_numbers = made(memory, "float16", seed=2)
    if not first_is_resident:
        host = download_table(memory, first)
        first = upload_table(memory, host, "float16", is_resident=False)
        assert (first.is_resident, first.size_bytes) == (False, host.nbytes)
    window = TableWindow(memory, (first, second), "float16", SHAPES)
    for entries in ((0, 2), (0, 1), (2, 1)):
        window.show(entries)
        for name, bound in window.arrays.items():
            shown = memory.download(bound)
            for half, (numbers, entry) in enumerate(
                zip((first_numbers, second_numbers), entries, strict=True)
            ):
                want = numbers[name][entry * REFERENCES : (entry + 1) * REFERENCES]
                assert np.array_equal(shown[half * REFERENCES : (half + 1) * REFERENCES], want)


@pytest.mark.parametrize("eager", ["steps", "copies", "none"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_streamed_entries_arrive_before_their_step_in_any_order_of_the_streams(
    eager: str, dtype: Any
) -> None:
    """Two streamed tables and a resident one; one of them stands still, one jumps and returns."""
    streams = TwoStreams(eager)
    plain = HostMemory()
    hosts = [download_table(plain, made(plain, dtype, seed=seed)[0]) for seed in (1, 2)]
    tables = [upload_table(streams, host, "float16", is_resident=False) for host in hosts]
    resident, numbers = made(plain, "float16", seed=3)
    window = TableWindow(streams, (tables[0], resident, tables[1]), "float16", SHAPES)
    steps = [(0, 2, 1), (0, 1, 2), (1, 0, 2), (2, 0, 0), (2, 0, 1), (0, 2, 1), (1, 2, 2)]
    seen: list[dict[str, Any]] = []
    for number, entries in enumerate(steps):
        window.show(entries)
        streams.put(
            "steps",
            "do",
            lambda: seen.append({n: streams.download(a) for n, a in window.arrays.items()}),
        )
        if number + 1 < len(steps):
            window.fetch(steps[number + 1])
    streams.finish()
    assert len(seen) == len(steps)
    for entries, arrays in zip(steps, seen, strict=True):
        for name, array in arrays.items():
            wanted = (
                entry_of(hosts[0], entries[0])[name],
                numbers[name][entries[1] * REFERENCES : (entries[1] + 1) * REFERENCES],
                entry_of(hosts[1], entries[2])[name],
            )
            np.testing.assert_array_equal(array, np.concatenate(wanted).astype(np.float16))


def test_the_entry_of_the_next_step_is_unpacked_and_copied_while_a_step_runs() -> None:
    streams, plain = TwoStreams("copies"), HostMemory()
    host = download_table(plain, made(plain, "float16")[0])
    table = upload_table(streams, host, "float16", is_resident=False)
    window = TableWindow(streams, (table,), "float16", SHAPES)
    for entry in range(ENTRIES):
        window.show((entry,))
        streams.run("steps")  # all that the step waits for is there
        assert not streams.waiting["steps"]
        streams.put("steps", "hold", 1_000_000 + entry)  # a step that takes its time
        if entry + 1 < ENTRIES:
            window.fetch((entry + 1,))
            assert not streams.waiting["copies"]  # done, though the step is not
        streams.reached.add(1_000_000 + entry)
    blocks = len(streams.blocks)
    window.show((ENTRIES - 1,))  # nothing changes, nothing is allocated
    assert len(streams.blocks) == blocks


def test_memory_is_freed_with_its_array(memory: HostMemory) -> None:
    array = memory.upload(np.zeros((3, 5), np.float32))
    assert (array.nbytes, array.row_bytes, len(memory.blocks)) == (60, 20, 1)
    del array
    pinned = memory.pinned(100)
    pinned.array[:] = 7
    assert ctypes.string_at(pinned.address, 100) == b"\7" * 100
    del pinned
    assert memory.blocks == {}
