"""What a process of suite `full-size` is asked for, and what it tells."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec
import numpy as np

Engine: TypeAlias = Literal["published", "diffusers", "genai", "onnxruntime", "openvino"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to draw.

    Attributes:
        engine: What draws.
        precision: It computes in: `float32`, `bf16`, `int8`.
        compiles: Through `torch.compile`.
        folder: Of the pair, the bundle, or what the peer reads.
        pair: Of the pair: prompts, noise and guidance are those of all ways.
        side_px: Of the picture.
        steps: Of each picture.
        threads: Pinned.
        pixels: File for the pixels of each kind of picture, npz.
    """

    engine: Engine
    precision: str
    compiles: bool = False
    folder: str
    pair: str
    side_px: int
    steps: int
    threads: int
    pixels: str


class Drawn(msgspec.Struct, frozen=True):
    """A warm picture of one kind.

    Attributes:
        steps_ms: Of its steps; of ours from the end of one to the end of the next.
        reference_ms: Of the Reference U-Net ahead of the steps, where that is apart from them.
        wall_ms: Of the whole picture.
    """

    steps_ms: tuple[float, ...]
    reference_ms: float
    wall_ms: float

    def scaled_ms(self, steps: int, measured: int) -> tuple[float, ...]:
        """Pictures of so many steps, one for each step that was timed.

        Args:
            steps: Of the picture.
            measured: Steps of the picture that was drawn.
        """
        per_step = statistics.fmean(self.steps_ms)
        fixed = max(0.0, self.wall_ms - self.reference_ms - measured * per_step)
        reference = self.reference_ms * steps / measured
        return tuple(fixed + reference + steps * each for each in self.steps_ms)


class Told(msgspec.Struct, frozen=True):
    """What a child says of itself.

    Attributes:
        load_ms: Until it could draw, imports and compilation ahead of the first step included.
        first_ms: Of its first picture, of as many steps as the others.
        drawn: By kind: `picture`, `new`, `known`, `text`.
    """

    load_ms: float
    first_ms: float
    drawn: dict[str, Drawn]


class Stopwatch:
    """Times between calls."""

    def __init__(self) -> None:
        """Start."""
        self.times = [time.perf_counter()]

    def __call__(self, *_: object) -> None:
        """One is over."""
        self.times.append(time.perf_counter())

    def between_ms(self, first: int = 0) -> tuple[float, ...]:
        """Milliseconds from each to the next, from that of number `first` on."""
        seen = self.times[first:]
        return tuple(1e3 * (b - a) for a, b in itertools.pairwise(seen))

    @property
    def wall_ms(self) -> float:
        """Since it was made."""
        return 1e3 * (time.perf_counter() - self.times[0])


Draw: TypeAlias = Callable[[], tuple[Drawn, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]
"""Draws a picture: its times, and its pixels, uint8 [H, W, 3]."""
