"""Device memory that ran out: one error with the numbers, and room for the next request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from bootpig_rt.errors import OutOfDeviceMemory

T = TypeVar("T")

_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")

# Libraries that allocate beside torch report the same in their own words.
_WORDS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def within_memory(
    what: str, function: Callable[[], T], *, device: str, free_caches: Callable[[], None]
) -> T:
    """Call a function.

    Args:
        what: It does, with the sizes, for the message.
        function: What to call.
        device: That it allocates on.
        free_caches: Drops what can be made again.

    Raises:
        OutOfDeviceMemory: There was no room. What the function held is free again, and so are the
            caches.
    """
    try:
        return function()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not _is_out_of_memory(error):
            raise
        asked = _asked_bytes(str(error))
    # Outside of the block, where the first error is gone: its frames hold the tensors of the call.
    free_caches()
    free, total = _free_and_total(device)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    raise OutOfDeviceMemory(what, asked_bytes=asked, free_bytes=free, total_bytes=total)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(word in str(error) for word in _WORDS)


def _asked_bytes(message: str) -> int | None:
    found = _ASKED.search(message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _free_and_total(device: str) -> tuple[int | None, int | None]:
    """As the driver sees them, ahead of giving back what torch keeps."""
    if not device.startswith("cuda"):
        return None, None
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)
