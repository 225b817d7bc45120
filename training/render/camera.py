"""Where the camera stands and how it frames a subject: views by azimuth and elevation.

The subject stays where it stands and the camera goes around it, so a view is a true one. Its place
in the picture is the lens's shift, which moves the picture without turning the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.render.mesh import Floats

FOV_DEG = 38.0
NEAR, FAR = 0.05, 200.0
FIT_ROUNDS = 6
MIN_DISTANCE = 0.9
"""From the middle of a subject with a longest side of 1: nearer, the camera would be inside."""


@dataclass(frozen=True)
class View:
    """From where a subject is seen: degrees about it, and above the ground. Azimuth 0 is +z."""

    azimuth_deg: float
    elevation_deg: float


@dataclass(frozen=True)
class Frame:
    """Where a subject lies in a square picture; lengths are shares of its side, from upper left.

    Attributes:
        length: Longest side of the subject's box.
        centre_x: Middle of the box.
        y: Its lower edge, or its middle if not `stands`.
        stands: Whether `y` is where it stands.
    """

    length: float
    centre_x: float = 0.5
    y: float = 0.5
    stands: bool = False


@dataclass(frozen=True)
class Camera:
    """A camera that looks at a point.

    Attributes:
        eye: float64 [3].
        world_to_clip: float64 [4, 4], columns of vectors.
        world_to_camera: float64 [4, 4].
    """

    eye: NDArray[np.float64]
    world_to_clip: NDArray[np.float64]
    world_to_camera: NDArray[np.float64]


def frame_subject(positions: Floats, view: View, frame: Frame) -> Camera:
    """Place the camera so that a subject, float32 [V, 3], fills a frame from a view."""
    points = np.concatenate([positions.astype(np.float64), np.ones((len(positions), 1))], axis=1)
    target = np.array([0.0, (positions[:, 1].min() + positions[:, 1].max()) / 2, 0.0])
    lens = _perspective((0.0, 0.0))
    distance = 2.5
    for _ in range(FIT_ROUNDS):
        look = _look_at(_eye(view, target, distance), target)
        low, high = _box(points @ (lens @ look).T)
        distance = max(MIN_DISTANCE, distance * float((high - low).max()) / 2 / frame.length)
    eye = _eye(view, target, distance)
    look = _look_at(eye, target)
    low, high = _box(points @ (lens @ look).T)
    x = 2 * frame.centre_x - 1 - (low[0] + high[0]) / 2
    y = 1 - 2 * frame.y - (low[1] if frame.stands else (low[1] + high[1]) / 2)
    return Camera(eye, _perspective((float(x), float(y))) @ look, look)


def _eye(view: View, target: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    azimuth, elevation = math.radians(view.azimuth_deg), math.radians(view.elevation_deg)
    level = math.cos(elevation)
    away = (level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth))
    return target + distance * np.array(away)


def _box(clip: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    xy = clip[:, :2] / np.maximum(clip[:, 3:], NEAR)
    return xy.min(0), xy.max(0)


def _perspective(shift: tuple[float, float]) -> NDArray[np.float64]:
    """A perspective whose picture is moved by `shift`, in units of half a side."""
    f = 1 / math.tan(math.radians(FOV_DEG) / 2)
    return np.array(
        [
            [f, 0, -shift[0], 0],
            [0, f, -shift[1], 0],
            [0, 0, (FAR + NEAR) / (NEAR - FAR), 2 * FAR * NEAR / (NEAR - FAR)],
            [0, 0, -1, 0],
        ]
    )


def _look_at(eye: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(back, right), back])
    matrix[:3, 3] = -matrix[:3, :3] @ eye
    return matrix


def from_above(direction: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """What the sun sees of a ball about the subject's middle, without perspective: [4, 4]."""
    target = np.array([0.0, 0.5, 0.0])
    upright = abs(direction[1]) > 0.999
    aim = direction + np.array([0.0, 0.0, 0.02]) if upright else direction
    look = _look_at(target + 2 * radius * aim / np.linalg.norm(aim), target)
    return np.diag([1 / radius, 1 / radius, -1 / (2 * radius), 1]) @ _move(0, 0, 2 * radius) @ look


def _move(x: float, y: float, z: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return matrix
