"""Memory of this process that maps no file."""

from __future__ import annotations

from pathlib import Path


def own_bytes() -> int:
    """As Linux tells it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10
