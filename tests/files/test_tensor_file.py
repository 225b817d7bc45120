"""Files of tensors: what is used later are the bytes that were checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.errors import CheckpointError
from bootpig_rt.files.tensor_file import (
    Tensor,
    read_tensor_file,
    read_tensor_header,
    write_tensor_file,
)

NUMBERS = np.arange(3 * 2**17, dtype=np.float32).reshape(3, -1)  # more than one piece of reading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tensors"
    tensors = {"wide": Tensor("F32", NUMBERS), "narrow": Tensor("U8", np.arange(7, dtype=np.uint8))}
    write_tensor_file(path, tensors, {"kind": "test"})
    return path


def test_what_was_written_is_read(file: Path) -> None:
    read = read_tensor_file(file, max_bytes=1 << 30)
    np.testing.assert_array_equal(read.tensors["wide"].array, NUMBERS)
    np.testing.assert_array_equal(read.tensors["narrow"].array, np.arange(7))
    assert read.metadata == {"kind": "test"}


def test_a_file_that_changes_after_it_was_checked_changes_nothing(file: Path) -> None:
    read = read_tensor_file(file, max_bytes=1 << 30)
    with file.open("r+b") as stream:
        stream.seek(-NUMBERS.nbytes, 2)
        stream.write(b"\xff" * NUMBERS.nbytes)
    np.testing.assert_array_equal(read.tensors["wide"].array, NUMBERS)


def test_a_file_that_is_cut_short_under_a_running_process_does_not_kill_it(file: Path) -> None:
    """Tensors were mapped: the first touch behind the new end was a SIGBUS."""
    script = """
import os, sys
from pathlib import Path
from bootpig_rt.files.tensor_file import read_tensor_file
read = read_tensor_file(Path(sys.argv[1]), max_bytes=1 << 30)
os.truncate(sys.argv[1], 100)
print(float(read.tensors["wide"].array.sum()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran
    assert float(ran.stdout) == NUMBERS.sum()


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = np.empty

    def allocate_late(size: int, dtype: type) -> np.ndarray:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size - 10)
        return allocate(size, dtype)

    monkeypatch.setattr(np, "empty", allocate_late)
    with pytest.raises(CheckpointError, match="it ends 10 bytes early"):
        read_tensor_file(file, max_bytes=1 << 30)


def test_a_file_larger_than_the_memory_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(size: int, dtype: type) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(CheckpointError, match="more than there is memory for"):
        read_tensor_file(file, max_bytes=1 << 30)


@pytest.mark.parametrize("read", [read_tensor_file, read_tensor_header])
def test_a_file_is_read_up_to_the_limit_and_not_a_byte_beyond(file: Path, read: object) -> None:
    size = file.stat().st_size
    assert callable(read)
    read(file, max_bytes=size)
    with pytest.raises(CheckpointError, match=f"expected at most {size - 1}"):
        read(file, max_bytes=size - 1)
