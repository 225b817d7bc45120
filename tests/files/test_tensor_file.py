"""Files of tensors: what is used later are the bytes that were checked."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def write_signed(path: Path, header: dict[str, Any], more: str = "") -> None:
    """A file of no numbers whose digest is right; `more` is put into the entry of "a" as it is."""
    digest = hashlib.sha256(with_more(json.dumps(header, sort_keys=True), more).encode())
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = with_more(json.dumps(header), more).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def with_more(text: str, more: str) -> str:
    return text.replace('"more"', more) if more else text


@pytest.mark.parametrize(
    "shape",
    [[0, 2**31], [0, 2**62], [2**63, 0], [0, 2**40, 2**40], [2**31] * 7 + [0], [0, 10**400]],
    ids=str,
)
def test_a_tensor_of_no_bytes_has_sides_that_there_can_be(tmp_path: Path, shape: list[int]) -> None:
    path = tmp_path / "a.tensors"
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    write_signed(path, {"__metadata__": {}, "a": entry})
    if shape == [0, 2**31]:
        assert read_tensor_file(path, max_bytes=1 << 20).tensors["a"].array.shape == (0, 2**31)
        return
    for read in (read_tensor_file, read_tensor_header):
        with pytest.raises(CheckpointError, match="has shape") as caught:
            read(path, max_bytes=1 << 20)
        assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("depth", [1, *range(900, 1000, 7)])
def test_an_entry_holds_nothing_but_what_it_should(tmp_path: Path, depth: int) -> None:
    """What it held could be read and could not be written again, to be held against the digest."""
    path = tmp_path / "a.tensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], "x": "more"}
    write_signed(path, {"__metadata__": {}, "a": entry}, "[" * depth + "]" * depth)
    for read in (read_tensor_file, read_tensor_header):
        with pytest.raises(CheckpointError, match="is damaged"):
            read(path, max_bytes=1 << 20)


def test_a_long_name_does_not_make_a_long_message(tmp_path: Path) -> None:
    path = tmp_path / "a.tensors"
    write_signed(path, {"__metadata__": {}, "a\n\x1b" * 100_000: 1})
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_tensor_file(path, max_bytes=1 << 20)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(path))
