"""A drawing as a thin card that stands on the ground, so that one renderer draws all subjects."""

from __future__ import annotations

import numpy as np

from bootpig_rt.training.render.mesh import Mesh, Part, Pixels


def card_of(sprite: Pixels) -> Mesh:
    """A card that shows a drawing, uint8 [H, W, 4]: it faces +z, and its longest side is 1.

    The drawing is cut to what is opaque, so its lowest pixel is on the ground.
    """
    rows, columns = np.nonzero(sprite[..., 3] > 127)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    cut = np.ascontiguousarray(sprite[top:bottom, left:right])
    # Pixels without colour get that of their neighbours: smaller levels mix them in.
    cut = _bled(cut)
    longest = max(bottom - top, right - left)
    width, height = (right - left) / longest, (bottom - top) / longest
    positions = np.array(
        [[-width / 2, 0, 0], [width / 2, 0, 0], [width / 2, height, 0], [-width / 2, height, 0]],
        np.float32,
    )
    return Mesh(
        positions,
        np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32),
        np.ones((4, 4), np.float32),
        np.array([0, 1, 2, 0, 2, 3], np.uint32),
        (Part(0, 6, cut),),
    )


def _bled(sprite: Pixels) -> Pixels:
    """Fill pixels of no opacity with the mean colour of the rest."""
    clear = sprite[..., 3] == 0
    filled = sprite.copy()
    filled[clear, :3] = sprite[~clear, :3].mean(axis=0).astype(np.uint8)
    return filled
