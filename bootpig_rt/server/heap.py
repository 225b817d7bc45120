"""The C heap of a process that runs for weeks.

By default glibc gives each thread an arena of its own, and after the first large block that is
freed it carves blocks of that size from them, too. Requests of many sizes on many threads then
leave holes that no one fills: from minute 13 to 30 of a load a service grew by 22 MB, and with
this by 5.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_ARENAS = 2
_OWN_MAPPING_BYTES = 1 << 20
_FREE_TOP_BYTES = 4 << 20


def keep_heap_small() -> bool:
    """Have few arenas, and give large blocks back to the system when they are freed.

    Nothing is changed where the environment has settings for malloc, or there is no glibc.

    Returns:
        Whether it was changed.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = _mallopt()
    if mallopt is None:
        return False
    mallopt(_M_ARENA_MAX, _ARENAS)
    mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _FREE_TOP_BYTES)
    return True


def _mallopt() -> ctypes._NamedFuncPointer | None:
    """The function of glibc; None on another C library."""
    try:
        libc = ctypes.CDLL(None)
        return libc.mallopt if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows
        return None
