"""Free memory of the host, as Linux and a container tell it."""

from __future__ import annotations

from pathlib import Path

from bootpig_rt.backends.host_memory import free_memory_bytes


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8192 kB\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 8 << 20
    (tmp_path / "memory.max").write_text("6291456\n")
    (tmp_path / "memory.current").write_text("4194304\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path, tmp_path) == 8 << 20
    assert free_memory_bytes(tmp_path / "none", tmp_path / "none") is None
