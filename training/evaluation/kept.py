"""Arrays that are kept between runs: a file each, which is made anew where it is damaged."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.files.atomic import atomic_write


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file that `write_arrays` wrote, or None if it is not there or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name, all at once; the folder is made if need be.

    Raises:
        StorageError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]
