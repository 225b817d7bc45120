"""Depth of the small world: drawings are cards that stand on level ground.

The world is flat, so its depth is what a picture of it shows: ground that comes nearer towards the
lower edge, and one card as near as the ground under it. Values are inverse depth, near is 255, as
depth estimators give it and controls of kind `depth` read it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HORIZON = 0.4
"""Where the ground ends, as a share of the picture's height from above."""

GROUND_NEAR = 0.6
"""Inverse depth of the ground at the lower edge; a card stands this much nearer than its ground."""

CARD_NEARER = 0.35


def card_depth(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The depth map of a picture.

    Args:
        mask: uint8 [H, W], how much of a pixel is the subject.

    Returns:
        uint8 [H, W], 255 near, 0 where nothing is.
    """
    height = mask.shape[0]
    rows = (np.arange(height) + 0.5) / height
    ground = GROUND_NEAR * np.clip((rows - HORIZON) / (1.0 - HORIZON), 0.0, 1.0)
    inside = mask > 127
    card = CARD_NEARER
    if inside.any():
        foot = int(np.flatnonzero(inside.any(axis=1))[-1])
        card += float(ground[foot])
    share = mask.astype(np.float32) / 255.0
    depth = share * card + (1.0 - share) * ground[:, np.newaxis]
    grey: NDArray[np.uint8] = np.rint(255.0 * depth).astype(np.uint8)
    return grey


def metric_depth(depth: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The depth map of a rendering.

    Args:
        depth: uint16 [H, W], distance from the camera in any unit; what is nearest is 255 and what
            is furthest 0, inverse depth between them.

    Returns:
        uint8 [H, W].
    """
    inverse = 1.0 / np.maximum(depth.astype(np.float64), 1.0)
    low, high = inverse.min(), inverse.max()
    share = (inverse - low) / (high - low) if high > low else np.zeros_like(inverse)
    grey: NDArray[np.uint8] = np.rint(255.0 * share).astype(np.uint8)
    return grey
