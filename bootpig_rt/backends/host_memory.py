"""How much of the host's memory this process may still take, and giving back what it let go."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path


def free_memory_bytes(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Host memory that this process may still take; None where the system does not say.

    Args:
        proc: Where Linux tells of its memory.
        cgroup: Where it tells of a container's limit, in version 2.
    """
    found = []
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)
    limit, used = _lines(cgroup / "memory.max"), _lines(cgroup / "memory.current")
    if limit and used and limit[0].isdigit():
        # What was read of files counts as used, and is let go of as soon as somebody needs room.
        kept = dict(line.split() for line in _lines(cgroup / "memory.stat"))
        files = sum(int(kept.get(name, 0)) for name in ("active_file", "inactive_file"))
        found.append(max(0, int(limit[0]) - int(used[0]) + files))
    return min(found, default=None)


def return_freed_memory() -> None:
    """Give the system what nobody here uses any more.

    The C library keeps what was freed in pieces of up to 32 MiB, which is most of a large U-Net:
    of a pair of Stable Diffusion XL's size nine gigabytes.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
