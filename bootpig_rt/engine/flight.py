"""A picture on its way: what it needs for its steps, the step it is at, and its state between runs.

Pictures of one batch may be at different steps of different solvers. A run lasts as long as no
picture's rows change: a picture that leaves its reference window or its guidance interval, that is
done, or that joins, ends the run, and the next one goes on from the state that it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.base import FloatArray, IntArray
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.solver import SolverTable
from bootpig_rt.reference.reference_table import ReferenceKV
from bootpig_rt.reference.schedule import ReferenceSchedule, steps_of_share
from bootpig_rt.request import Request

# Keeps the draws of picture noise apart from those of reference noise with the same seed.
_PICTURE_STREAM = 0x71C


@dataclass(frozen=True)
class FlightPlan:
    """What one picture needs for all of its steps.

    Attributes:
        request: Of one picture.
        solver: Its steps.
        schedule: How it reads its subject.
        table: Of its subject for that schedule; None without a subject.
        image_guidance_scale: s_image, where guidance is on.
        text_guidance_scale: s_text, where guidance is on.
        merge: How several references are combined.
        shape: Of its latents, (C, h, w).
    """

    request: Request
    solver: SolverTable
    schedule: ReferenceSchedule
    table: ReferenceKV | None
    image_guidance_scale: float
    text_guidance_scale: float
    merge: Merge
    shape: tuple[int, int, int]


@dataclass
class Flight:
    """A picture and where it stands. Not for use from several threads.

    Attributes:
        plan: What it needs.
        step: Steps done.
        state: float32 [1 + K, C, h, w], latents and history after those steps.
    """

    plan: FlightPlan
    step: int = 0
    state: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        """Draw the noise, and lay out which steps read the reference and have guidance."""
        plan, solver = self.plan, self.plan.solver
        steps = solver.num_steps
        self.entries: IntArray = np.full(steps, -1, dtype=np.int64)
        if plan.table is not None:
            self.entries = plan.schedule.entry_of_step(steps)
        guided = steps_of_share(plan.request.guidance_interval, steps)
        self.is_guided: npt.NDArray[np.bool_] = np.zeros(steps, dtype=np.bool_)
        self.is_guided[guided.start : guided.stop] = True
        self.state = np.zeros((1 + solver.history_size, *plan.shape), dtype=np.float32)
        self.state[0] = picture_noise(plan.request.seed or 0, plan.shape) * solver.init_noise_sigma

    @property
    def is_done(self) -> bool:
        """No step is left."""
        return self.step == self.plan.solver.num_steps

    @property
    def reads(self) -> bool:
        """The next step reads the reference."""
        return bool(self.entries[self.step] >= 0)

    @property
    def scales(self) -> tuple[float, float]:
        """s_image and s_text of the next step."""
        if not self.is_guided[self.step]:
            return 1.0, 1.0
        return self.plan.image_guidance_scale, self.plan.text_guidance_scale

    @property
    def latents(self) -> FloatArray:
        """float32 [C, h, w], finished when no step is left."""
        latents: FloatArray = self.state[0]
        return latents

    def steps_alike(self) -> int:
        """How many steps from the next one on have its rows: 1 or more."""
        phases = np.stack([self.entries[self.step :] >= 0, self.is_guided[self.step :]])
        changes = np.flatnonzero((phases != phases[:, :1]).any(axis=0))
        return int(changes[0]) if len(changes) else int(phases.shape[1])


def joint_state(flights: Sequence[Flight]) -> FloatArray:
    """State of a batch, float32 [1 + K, B, C, h, w]; short histories are filled with zeros."""
    size = max(len(flight.state) for flight in flights)
    state = np.zeros((size, len(flights), *flights[0].plan.shape), dtype=np.float32)
    for b, flight in enumerate(flights):
        state[: len(flight.state), b] = flight.state
    return state


def hand_back(flights: Sequence[Flight], state: FloatArray) -> None:
    """Give every picture its part of a batch's state, the converse of `joint_state`."""
    for b, flight in enumerate(flights):
        flight.state = state[: len(flight.state), b].copy()


def picture_noise(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """Initial noise of one picture, float32 of unit variance: from its own seed alone."""
    rng = np.random.default_rng([_PICTURE_STREAM, seed])
    return rng.standard_normal(shape, dtype=np.float32)
