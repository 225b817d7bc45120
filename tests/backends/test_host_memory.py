"""Free memory of the host, as Linux and a container tell it, and what is given back to it."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.backends.host_memory import free_memory_bytes, return_freed_memory
from tests.own_memory import own_bytes


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8192 kB\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 8 << 20
    (tmp_path / "memory.max").write_text("6291456\n")
    (tmp_path / "memory.current").write_text("4194304\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 2 << 20
    (tmp_path / "memory.stat").write_text("anon 77\ninactive_file 1048576\nactive_file 524288\n")
    assert free_memory_bytes(tmp_path, tmp_path) == (2 << 20) + (3 << 19)  # of files, given back
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 8 << 20
    assert free_memory_bytes(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_memory_between_pieces_that_are_still_used_goes_back() -> None:
    before = own_bytes()
    pieces = [np.ones(100_000, np.uint8) for _ in range(2000)]
    used = own_bytes() - before
    kept = pieces[::100]
    del pieces
    return_freed_memory()
    assert used > 150e6
    assert own_bytes() - before < used / 4
    assert len(kept) == 20
