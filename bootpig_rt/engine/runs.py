"""Runs of pictures that leave out the deep blocks at different steps, or follow maps, side by side.

A run computes the deep blocks of all its pictures in a step, or of none. So pictures that are in
step share one, and a picture never gets features that it would not have alone. Steps that follow
maps have graphs of their own, so those pictures share runs among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bootpig_rt.backends.base import DenoiseRun, DeviceArray, FloatArray

if TYPE_CHECKING:
    from bootpig_rt.engine.batch import Picture


def in_step(pictures: Sequence[Picture], num_steps: int) -> tuple[int, list[list[int]]]:
    """How long the next run may be, and which pictures share it.

    Args:
        pictures: Of a batch.
        num_steps: In which no picture's rows change.

    Returns:
        The first of those steps in which pictures stay in step, or out of it; indices of the
        pictures of each run, the first picture in the first.
    """
    all_deep = np.ones(num_steps, dtype=np.bool_)
    deep = np.stack([
        all_deep if p.plan.deep_steps is None else p.plan.deep_steps[p.step : p.step + num_steps]
        for p in pictures
    ])  # fmt: skip
    is_alike = (deep == deep[0]).all(axis=0)
    changes = np.flatnonzero(is_alike != is_alike[0])
    num_steps = int(changes[0]) if len(changes) else num_steps
    parts: dict[tuple[bool, bytes], list[int]] = {}
    for b, steps in enumerate(deep[:, :num_steps]):
        parts.setdefault((pictures[b].is_controlled(), steps.tobytes()), []).append(b)
    return num_steps, list(parts.values())


class SeveralRuns:
    """Runs of some pictures each as one run of all. Implements `DenoiseRun`.

    Args:
        runs: Of equally many steps.
        parts: Indices of the pictures of each run.
    """

    def __init__(self, runs: Sequence[DenoiseRun], parts: Sequence[Sequence[int]]) -> None:
        """Keep them."""
        self._runs = runs
        joined = [b for part in parts for b in part]
        self._order = np.argsort(joined)

    def step(self, index: int) -> None:
        """One launch of each run."""
        for run in self._runs:
            run.step(index)

    def state(self) -> FloatArray:
        """State of all pictures; a history that is shorter in one run is filled with zeros."""
        states = [run.state() for run in self._runs]
        size = max(len(state) for state in states)
        padded = [
            np.pad(state, [(0, size - len(state)), *[(0, 0)] * (state.ndim - 1)])
            for state in states
        ]
        return np.concatenate(padded, axis=1)[:, self._order]

    def estimate(self) -> FloatArray:
        """What the last step took for the finished latents, of all pictures."""
        return np.concatenate([run.estimate() for run in self._runs])[self._order]

    def features(self) -> tuple[DeviceArray, ...]:
        """What the deep blocks gave last, of each picture."""
        found = [features for run in self._runs for features in run.features()]
        return tuple(found[place] for place in self._order)
