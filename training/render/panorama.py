"""HDR panoramas: Radiance files, and the light that they give.

Row 0 is straight up; the middle column is -z, and columns to the right go towards +x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.errors import InputError
from bootpig_rt.training.render.light import Light, ambient_of
from bootpig_rt.training.render.mesh import Floats

MAX_SIDE_PX = 8192
SUN_SHARE = 0.004
"""Share of the upper half that is searched for the sun: its brightest part."""
MAX_LEVEL = 100.0
TINT = 0.55
"""How much of the light's colour a subject takes on; the rest is grey of the same brightness."""
LUMA = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True)
class Panorama:
    """A panorama and its light.

    Attributes:
        pixels: float32 [H, 2 H, 3], linear, scaled to the light.
        light: What a subject in it gets.
    """

    pixels: Floats
    light: Light


def read_panorama(path: Path) -> Panorama:
    """Read a Radiance file and find its light.

    Raises:
        InputError: The file is damaged, or of another format.
        OSError: It cannot be read.
    """
    pixels = read_radiance(path).astype(np.float64)
    height, width = pixels.shape[:2]
    if width != 2 * height:
        raise InputError(f"{path} is {width} x {height} px, expected a panorama twice as wide")
    directions, weights = _directions(height, width)
    flat, weights = pixels.reshape(-1, 3), weights.ravel()
    directions = directions.reshape(-1, 3)
    luminance = flat @ LUMA
    above = directions[:, 1] > 0.1
    limit = np.quantile(luminance[above], 1 - SUN_SHARE)
    bright = above & (luminance >= limit)
    excess = (luminance - limit)[bright] * weights[bright] + 1e-9
    towards = (directions[bright] * excess[:, None]).sum(0)
    towards /= np.linalg.norm(towards)
    # Shadows of a low sun would leave the picture.
    towards[1] = max(towards[1], 0.5)
    towards /= np.linalg.norm(towards)
    rest = np.minimum(flat, limit * np.maximum(flat / np.maximum(luminance, 1e-9)[:, None], 0))
    ambient = ambient_of(directions, rest, weights)
    sun = ((flat - rest) * weights[:, None]).sum(0) / math.pi
    level = _level(ambient)
    sun = _tinted(sun, float(np.clip(sun @ LUMA, 0.35 * level, 1.2 * level)))
    total = level + float(sun @ LUMA) * towards[1]
    scale = 0.95 / total
    grey = ambient @ LUMA
    ambient = TINT * ambient + (1 - TINT) * grey[:, None]
    # The picture has its own exposure: indoors, windows are many times brighter than the room.
    exposure = 0.36 / float(np.exp((np.log(luminance + 1e-4) * weights).sum() / weights.sum()))
    light = Light(towards, (sun * scale).astype(np.float32), (ambient * scale).astype(np.float32))
    shown = np.minimum(pixels * exposure, MAX_LEVEL)
    return Panorama(shown.astype(np.float32), light)


def _level(ambient: NDArray[np.float64]) -> float:
    """How bright a white sheet on the ground is by ambient light alone."""
    up = np.array([0.282095, 0.488603, 0, 0, 0, 0, -0.315392, 0, -0.546274])
    return float(max(up @ (ambient @ LUMA), 1e-6))


def _tinted(colour: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    own = float(max(colour @ LUMA, 1e-9))
    return level * (TINT * colour / own + (1 - TINT))


def _directions(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of pixels, [H, W, 3], and their solid angles, [H, W]."""
    polar = (np.arange(height) + 0.5) / height * math.pi
    turn = ((np.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    level = np.sin(polar)[:, None]
    y = np.broadcast_to(np.cos(polar)[:, None], (height, width))
    directions = np.stack([level * np.sin(turn), y, -level * np.cos(turn)], axis=-1)
    area = (2 * math.pi / width) * (math.pi / height)
    return directions, np.broadcast_to(level * area, (height, width))


def read_radiance(path: Path) -> Floats:
    """Read a Radiance RGBE file, float32 [H, W, 3].

    Raises:
        InputError: It is damaged, or its rows go another way.
        OSError: It cannot be read.
    """
    data = path.read_bytes()
    end = data.find(b"\n\n")
    size, _, body = data[end + 2 :].partition(b"\n")
    words = size.split()
    if not data.startswith(b"#?") or end < 0 or len(words) != 4 or words[0] != b"-Y":
        raise InputError(f"{path} is no Radiance picture with rows from the top; fetch it again")
    try:
        height, width = int(words[1]), int(words[3])
        if not (0 < height <= MAX_SIDE_PX and 8 <= width <= MAX_SIDE_PX):
            raise ValueError(f"{width} x {height} px")
        rgbe = _unpack(np.frombuffer(body, np.uint8), height, width)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error
    scale = np.ldexp(1.0, rgbe[..., 3].astype(np.int32) - 136)
    return np.asarray(rgbe[..., :3] * scale[..., None], np.float32)


def _unpack(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Undo the run lengths of the four planes of each row, uint8 [H, W, 4]."""
    if data[0] != 2 or data[1] != 2:
        return data[: height * width * 4].reshape(height, width, 4)
    rows = np.empty((height, 4, width), np.uint8)
    raw, at = data.tobytes(), 0
    for row in rows:
        at += 4
        for plane in range(4):
            line = bytearray()
            while len(line) < width:
                count = raw[at]
                if count > 128:
                    line += raw[at + 1 : at + 2] * (count - 128)
                    at += 2
                else:
                    if count == 0:
                        raise ValueError("a run of no length")
                    line += raw[at + 1 : at + 1 + count]
                    at += 1 + count
            row[plane] = np.frombuffer(bytes(line), np.uint8)
    return rows.transpose(0, 2, 1)
