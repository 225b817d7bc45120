"""Reference tables of the TensorRT backend, with host memory in the place of a device's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.cuda_memory import DeviceArray
from bootpig_rt.backends.tensorrt_tables import (
    TableWindow,
    download_table,
    finish_table,
    upload_table,
)
from bootpig_rt.errors import NumericalError
from bootpig_rt.table_storage import HostTable, pack_table

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


def test_memory_is_freed_with_its_array(memory: HostMemory) -> None:
    array = memory.upload(np.zeros((3, 5), np.float32))
    assert (array.nbytes, array.row_bytes, len(memory.blocks)) == (60, 20, 1)
    del array
    assert memory.blocks == {}
