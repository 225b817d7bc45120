"""Files that are made once, each by one of the processes that need them, side by side.

Nobody says who makes which: every process takes a file that is missing and that nobody else makes,
until all are there. So any number of processes share the work, one that dies leaves its file to
the others, and a command that is run again goes on with what is missing. Knows nothing about what
is in the files.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.storage import claim

_PAUSE_S = 0.2

Make = Callable[[int, Callable[[int], object]], None]
"""Makes one of the files by its place, and says from time to time how much more of it is done."""


def make_missing(
    files: Sequence[Path], sizes: Sequence[int], make: Make, *, what: str, unit: str
) -> None:
    """Make the files that are not there yet, with all others who are asked for them.

    Args:
        files: All of them.
        sizes: How much there is to do for each.
        make: Called for some of them; writes `files[i]` whole or not at all.
        what: Name of the progress bar.
        unit: What is counted in it.

    Raises:
        StorageError: A folder cannot be made.
    """
    missing = [i for i, file in enumerate(files) if not file.exists()]
    for folder in {files[i].parent for i in missing}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {describe_os_error(error)}") from error
    total = sum(sizes[i] for i in missing)
    hidden = None if missing and _is_main() else True  # None: hidden where nobody looks
    with tqdm(total=total, desc=what, unit=unit, leave=False, disable=hidden) as bar:
        while missing:
            held = [i for i in missing if not _make_one(i, files[i], make, bar, sizes[i])]
            if len(held) == len(missing):
                time.sleep(_PAUSE_S)
            missing = held


def _make_one(i: int, file: Path, make: Make, bar: Any, size: int) -> bool:
    """Make a file unless another does; whether it is there."""
    before = bar.n
    if not file.exists():
        taken = claim.take(file.with_suffix(".lock"))
        if taken is None:
            return False
        try:
            if not file.exists():
                make(i, bar.update)
        finally:
            taken.release()
    bar.update(size - (bar.n - before))
    return True


def _is_main() -> bool:
    distributed: Any = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file that is whole or not there, with a few values beside the tensors.

    Raises:
        StorageError: Disk full, or no permission.
    """
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, temporary, metadata={"about": json.dumps(about)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; run the same command again to go on"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of such a file, which stay on the disk until they are read, and its values.

    Raises:
        StorageError: It is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            about: dict[str, Any] = json.loads(file.metadata()["about"])
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise StorageError(
            f"{path} is damaged ({error}); delete it and run the same command again"
        ) from error
    return tensors, about
