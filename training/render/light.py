"""Light on a subject: a sun and what comes from all around, as spherical harmonics.

Radiance is linear and scaled so that a white sheet that lies on the ground is about 1. Ambient
light is irradiance over pi in nine coefficients (Ramamoorthi and Hanrahan, "An Efficient
Representation for Irradiance Environment Maps", 2001, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.training.render.mesh import Floats

BANDS = np.array([math.pi] + [2 * math.pi / 3] * 3 + [math.pi / 4] * 5) / math.pi


@dataclass(frozen=True)
class Light:
    """A sun and ambient light.

    Attributes:
        direction: float64 [3], of unit length, towards the sun.
        sun: float32 [3], what it adds to a white sheet that faces it.
        ambient: float32 [9, 3], harmonics of what a white sheet shows without it.
        softness: Radius of the blur of shadows, in lengths of the subject.
    """

    direction: NDArray[np.float64]
    sun: Floats
    ambient: Floats
    softness: float = 0.04


def harmonics(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nine real harmonics of unit vectors [..., 3]: [..., 9]."""
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    one = np.ones_like(x)
    return np.stack(
        [
            0.282095 * one,
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ],
        axis=-1,
    )


def ambient_of(
    directions: NDArray[np.float64], radiance: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients, [9, 3], of radiance [N, 3] that comes from directions [N, 3].

    `weights` [N] are solid angles.
    """
    basis = harmonics(directions) * weights[:, None]
    return np.asarray(basis.T @ radiance * BANDS[:, None])


def turned(light: Light, share: float) -> Light:
    """A light turned about the vertical by a share of a whole turn, towards larger azimuths."""
    angle = 2 * math.pi * share
    cos, sin = math.cos(angle), math.sin(angle)
    # x and z of what is seen from the turned light, and of what it was.
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    directions, _ = _ball()
    before = harmonics(directions @ turn) @ light.ambient
    ambient = np.linalg.lstsq(harmonics(directions), before, rcond=None)[0]
    return replace(light, direction=turn @ light.direction, ambient=ambient.astype(np.float32))


def two_tone(sky: Floats, ground: Floats) -> Floats:
    """Ambient light of one colour above and another one below, float32 [9, 3]."""
    directions, weights = _ball()
    share = (directions[:, 1:2] + 1) / 2
    radiance = sky * share + ground * (1 - share)
    return ambient_of(directions, radiance, weights).astype(np.float32)


def sun_at(azimuth_deg: float, elevation_deg: float) -> NDArray[np.float64]:
    """Unit vector towards a sun, [3]; azimuth as of a view."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    level = math.cos(elevation)
    return np.array([level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth)])


@cache
def _ball() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions spread evenly, [N, 3], and their solid angles, [N]."""
    n = 400
    k = np.arange(n) + 0.5
    y, turn = 1 - 2 * k / n, k * math.pi * (3 - math.sqrt(5))
    level = np.sqrt(1 - y * y)
    directions = np.stack([level * np.cos(turn), y, level * np.sin(turn)], axis=1)
    return directions, np.full(n, 4 * math.pi / n)
