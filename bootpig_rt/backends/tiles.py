"""Large pictures through an autoencoder in overlapping tiles, so that its memory is bounded.

What an autoencoder takes grows with the picture, and the attention in the middle of Stable
Diffusion's with its square. So a side above `MOST_SIDE` latents is cut into tiles of equal size,
and launches hold `MOST_LATENTS` latents at most. Neighbours share `OVERLAP` latents: those at the
very edge of a tile, which know least of what lies behind it, are not used, and between them one
tile fades into the next. Knows arrays of the host, and no backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.base import FloatArray

MOST_SIDE = 96
"""Latents along a side of a launch: 768 px of Stable Diffusion's autoencoder."""

OVERLAP = 24
"""Latents that neighbours share, at least."""

UNUSED = 4
"""Of those, how many at the edge of each tile are left out."""

MOST_LATENTS = 2 * MOST_SIDE**2
"""Of all rows of a launch: two pictures of 768 px, or four of 512 px."""


@dataclass(frozen=True)
class Cut:
    """One side of a picture, in tiles.

    Attributes:
        starts: First latent of each tile.
        length: Latents of a tile.
        side: Latents of the side.
    """

    starts: tuple[int, ...]
    length: int
    side: int

    def weights(self, index: int, unit: int) -> FloatArray:
        """How much each place of a tile counts, float32 [length * unit]; all tiles add up to 1.

        Args:
            index: Of the tile.
            unit: Places along a latent: pixels, or 1.
        """
        weights = np.ones(self.length * unit)
        start = self.starts[index]
        if index:
            shared = self.starts[index - 1] + self.length - start
            weights[: shared * unit] = _fade(shared, unit)
        if index + 1 < len(self.starts):
            shared = start + self.length - self.starts[index + 1]
            weights[-shared * unit :] *= 1 - _fade(shared, unit)
        return weights.astype(np.float32)


def cut(side: int, *, most: int = MOST_SIDE, overlap: int = OVERLAP) -> Cut:
    """The fewest tiles of a side that are no longer than `most`, all of one length."""
    if side <= most:
        return Cut((0,), side, side)
    count = -(-(side - overlap) // (most - overlap))
    length = -(-(side + (count - 1) * overlap) // count)
    starts = [round(i * (side - length) / (count - 1)) for i in range(count)]
    return Cut(tuple(starts), length, side)


def in_tiles(
    run: Callable[[FloatArray], FloatArray],
    values: FloatArray,
    *,
    reads: int,
    makes: int,
    most: int = MOST_SIDE,
    overlap: int = OVERLAP,
) -> FloatArray:
    """Run an encoder or a decoder over rows that do not depend on each other, in bounded launches.

    Args:
        run: Takes rows of `values`, or parts of them, to what it makes of them.
        values: float32 [N, C, H, W].
        reads: Places of `values` along a latent: pixels for an encoder, 1 for a decoder.
        makes: The same of what it makes.
        most: Latents along a side that are run as a whole.
        overlap: Latents that neighbours share.

    Returns:
        float32 [N, C', H / reads * makes, W / reads * makes].
    """
    down, across = (cut(size // reads, most=most, overlap=overlap) for size in values.shape[2:])
    rows = max(1, MOST_LATENTS // (down.length * across.length))
    whole: list[FloatArray] = []
    for start in range(0, len(values), rows):
        some = values[start : start + rows]
        if len(down.starts) == len(across.starts) == 1:
            whole.append(run(some))
        else:
            whole.append(_joined(run, some, down, across, reads, makes))
    return whole[0] if len(whole) == 1 else np.concatenate(whole)


def _joined(
    run: Callable[[FloatArray], FloatArray],
    values: FloatArray,
    down: Cut,
    across: Cut,
    reads: int,
    makes: int,
) -> FloatArray:
    """Tiles of a few rows, faded into each other."""
    result: FloatArray | None = None
    for i, top in enumerate(down.starts):
        for j, left in enumerate(across.starts):
            tall = slice(top * reads, (top + down.length) * reads)
            wide = slice(left * reads, (left + across.length) * reads)
            made = run(np.ascontiguousarray(values[:, :, tall, wide]))
            if result is None:
                shape = (*made.shape[:2], down.side * makes, across.side * makes)
                result = np.zeros(shape, np.float32)
            weights = down.weights(i, makes)[:, np.newaxis] * across.weights(j, makes)
            tall = slice(top * makes, (top + down.length) * makes)
            wide = slice(left * makes, (left + across.length) * makes)
            result[:, :, tall, wide] += made * weights
    assert result is not None
    return result


def _fade(shared: int, unit: int) -> npt.NDArray[np.float64]:
    """From 0 to 1 over what two tiles share; both ends are flat for `UNUSED`."""
    places = (np.arange(shared * unit, dtype=np.float64) + 0.5) / unit
    unused = min(UNUSED, shared // 4)
    faded: npt.NDArray[np.float64] = np.clip((places - unused) / (shared - 2 * unused), 0.0, 1.0)
    return faded
