"""Features of picture files, kept in a folder so that a stopped scoring goes on.

Kept arrays are named by what they depend on: the bytes of the pictures, the encoder, and how a
picture was changed before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.images.image_input import load_image
from bootpig_rt.training.evaluation.kept import read_arrays, write_arrays

Change = Callable[[Path, Image.Image], Image.Image]
"""A file and its picture in RGB, to what is measured in its place."""
Measure = Callable[[Sequence[Image.Image]], NDArray[np.float32]]
"""Pictures to rows: float32 [N, ...]."""

_CHUNK = 100


@dataclass(frozen=True)
class Way:
    """One thing to measure of pictures.

    Attributes:
        name: What a progress bar calls it.
        fingerprint: Of all that the numbers depend on beside the pictures.
        measure: Pictures in RGB to rows.
        change: What is done to a picture before; None nothing.
    """

    name: str
    fingerprint: str
    measure: Measure
    change: Change | None = None


class FeatureStore:
    """Measures files; what is in `folder` is not measured again.

    `on_progress` is told a way's name and a number of pictures, of each file and way once.
    """

    def __init__(self, folder: Path, on_progress: Callable[[str, int], None] | None = None) -> None:
        self._folder, self._on_progress = folder, on_progress
        self._found: dict[tuple[str, tuple[Path, ...]], NDArray[np.float32]] = {}

    def __call__(self, way: Way, files: Sequence[Path]) -> NDArray[np.float32]:
        """Rows of the files, at least one, in their order: float32 [N, ...].

        Raises:
            ImageError: A file is no picture, or damaged.
            StorageError: The folder cannot be written.
        """
        key = (way.fingerprint, tuple(files))
        if key not in self._found:
            self._found[key] = self._measured(way, files)
        return self._found[key]

    def _measured(self, way: Way, files: Sequence[Path]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(files), _CHUNK):
            part = files[start : start + _CHUNK]
            digest = hashlib.sha256(way.fingerprint.encode())
            for file in part:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            path = self._folder / f"{digest.hexdigest()[:32]}.npz"
            kept = read_arrays(path)
            if kept is None:
                kept = {"rows": way.measure([_read(file, way.change) for file in part])}
                write_arrays(path, kept)
            found.append(kept["rows"])
            if self._on_progress is not None:
                self._on_progress(way.name, len(part))
        return np.concatenate(found)


def _read(file: Path, change: Change | None) -> Image.Image:
    image = load_image(file, what="picture").convert("RGB")
    return image if change is None else change(file, image)
