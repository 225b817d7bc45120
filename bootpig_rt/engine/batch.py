"""Pictures on their way, and the batches that they share.

Pictures of one batch may be at different steps of different solvers. A run of the backend lasts as
long as no picture's rows change: one that leaves its reference window or its guidance interval,
that is done, or that joins, ends the run, and the next one goes on from the state that it left.
Pictures whose next steps leave out the deep blocks at the same steps share a run; others of the
batch have one beside it. So have those that follow maps: a plain picture never runs through their
graphs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseRun, DeviceArray, FloatArray, IntArray
from bootpig_rt.engine.plan import Plan
from bootpig_rt.engine.rows import lay_out
from bootpig_rt.engine.runs import SeveralRuns, in_step
from bootpig_rt.engine.text_states import TextStates
from bootpig_rt.reference.reference_table import ReferenceTable

if TYPE_CHECKING:
    from bootpig_rt.engine.job import Job

# Keeps the draws of picture noise apart from those of reference noise with the same seed.
_PICTURE_STREAM = 0x71C

Group: TypeAlias = tuple[int, int, str, int]
"""Width, height and merge, which pictures of one launch share, and a number to keep others out."""


@dataclass(frozen=True, eq=False)
class PictureCanvas:
    """The given picture that one is drawn into, as latents: a picture's part of `BatchCanvas`.

    Attributes:
        latents: float32 [3, C, h, w].
        mask: float32 [1, h, w].
    """

    latents: FloatArray
    mask: FloatArray


class Picture:
    """One picture of a job, waiting or running. Touched by the thread that runs the engine alone.

    Attributes:
        job: Whose picture.
        number: Which one of the job.
        plan: What it is.
        group: What it shares with all pictures of its launches.
        table: Of its subject; None until it is there, and without a subject.
        step: Steps done.
        state: float32 [1 + K, C, h, w], latents and the solver's history after those steps.
        canvas: What it is drawn into, from its first step on; None for nothing.
        features: What the deep blocks gave last, the backend's own, where the next step reads it.
        waits: It is in the queue.
        passed_over: Steps in which others went ahead, for lack of room for this one.
        joined: Launches of its batch before it joined; equal for pictures at the same step.
    """

    def __init__(self, job: Job, number: int, plan: Plan) -> None:
        """Draw the noise."""
        self.job, self.number, self.plan = job, number, plan
        wanted = plan.parameters
        self.group: Group = (wanted.width, wanted.height, wanted.merge, 0)
        self.table: ReferenceTable | None = None
        self.step = 0
        shape = plan.latents_shape
        self.state: FloatArray = np.zeros((1 + plan.solver.history_size, *shape), np.float32)
        self.state[0] = picture_noise(wanted.seed, shape)
        self.canvas: PictureCanvas | None = None
        self.features: DeviceArray = None
        self.waits = False
        self.passed_over = 0
        self.joined = 0

    def part(self) -> None:
        """Share no launch any more: one that it was part of has failed."""
        self.group = (*self.group[:3], id(self))

    def steps_alike(self) -> int:
        """How many steps from the next one on have its rows: 1 or more."""
        following = np.flatnonzero(self.plan.changes[self.step + 1 :])
        return int(following[0]) + 1 if len(following) else len(self.plan.changes) - self.step

    def is_controlled(self) -> bool:
        """Whether the next step follows a map."""
        return any(plan.acts[self.step] for plan in self.plan.controls)

    def reads_features(self, steps_ahead: int = 0) -> bool:
        """Whether the next step, or one behind it, leaves out the deep blocks."""
        deep, step = self.plan.deep_steps, self.step + steps_ahead
        return deep is not None and step < len(deep) and not deep[step]


@dataclass(eq=False)
class Batch:
    """Pictures that share launches, and the run that they are in. Runs end when pictures change.

    Attributes:
        pictures: Of one group.
        launches: Steps so far, over all runs.
        run: What is on the device; None between two runs.
        num_rows: Rows of a launch of the run.
        done: Steps of the run so far.
        is_over: No step of the run is left.
        step_s: How long the last step took, with its upload if it was a run's first.
    """

    pictures: list[Picture] = field(default_factory=list)
    launches: int = 0
    run: DenoiseRun | None = None
    num_rows: int = 0
    done: int = 0
    is_over: bool = False
    step_s: float = 0.0
    _text_ms: float = 0.0
    _denoise_ms: float = 0.0
    _timesteps: IntArray | None = None

    def step(self, backend: Backend, text_states: TextStates) -> int:
        """One step, of a new run where there is none. Returns the first picture's timestep."""
        start = time.perf_counter()
        if self.run is None:
            num_steps, parts = self._parts()
            wanted = [picture.plan.parameters for picture in self.pictures]
            texts = text_states.of(
                [(t, p.sizes) for p in wanted for t in (p.prompt, p.negative_prompt)]
            )
            before, start = start, time.perf_counter()
            self._text_ms, self._denoise_ms = 1e3 * (start - before), 0.0
            self.done = self.num_rows = 0
            runs: list[DenoiseRun] = []
            for places in parts:
                part = [self.pictures[b] for b in places]
                batch = lay_out(part, num_steps, texts, joint_state(part))
                self._timesteps = self._timesteps if runs else batch.solver.timesteps
                self.num_rows += len(batch.picture_of_row)
                runs.append(backend.start(batch))
            self.run = runs[0] if len(runs) == 1 else SeveralRuns(runs, parts)
        assert self._timesteps is not None
        self.run.step(self.done)
        self.done += 1
        self.launches += 1
        self.is_over = self.done == len(self._timesteps)
        self.step_s = time.perf_counter() - start
        self._denoise_ms += 1e3 * self.step_s
        return int(self._timesteps[self.done - 1, 0])

    def close(self) -> None:
        """End the run, after all of its steps or before: its pictures get their states."""
        assert self.run is not None
        self._tell_times()
        keeps = any(picture.plan.deep_steps is not None for picture in self.pictures)
        state, features = self.run.state(), [None] * len(self.pictures)
        if keeps:
            features = list(self.run.features())
        self.run = None
        for b, picture in enumerate(self.pictures):
            picture.state = state[: len(picture.state), b].copy()
            picture.step += self.done
            picture.features = features[b]

    def _parts(self) -> tuple[int, list[list[int]]]:
        """Steps of the next run, and the pictures of each of those that it consists of."""
        num_steps = min(picture.steps_alike() for picture in self.pictures)
        if all(one.plan.deep_steps is None and not one.plan.controls for one in self.pictures):
            return num_steps, [list(range(len(self.pictures)))]
        return in_step(self.pictures, num_steps)

    def may_join(self, picture: Picture) -> bool:
        """Whether a picture would be in step with those that leave out the same as it does.

        It waits for a step in which one of them computes the deep blocks, as its own first step
        does: a few launches, which keep it from having launches of its own to the end.
        """
        if picture.plan.deep_steps is None:
            return True
        done = 0 if self.run is None else self.done
        what = picture.plan.parameters.approximation
        alike = [one for one in self.pictures if one.plan.parameters.approximation == what]
        return not alike or not all(one.reads_features(done) for one in alike)

    def drop(self) -> None:
        """Forget the run: its pictures stand where it began, and make its steps again."""
        if self.run is not None:
            self._tell_times()
            for picture in self.pictures:
                picture.job.done_steps -= self.done
        self.run = None

    def _tell_times(self) -> None:
        """Each call has waited for all of the run."""
        for timings in {id(one.job.timings): one.job.timings for one in self.pictures}.values():
            timings.text_ms += self._text_ms
            timings.denoise_ms += self._denoise_ms
        self._text_ms = self._denoise_ms = 0.0


def joint_state(pictures: list[Picture]) -> FloatArray:
    """State of a batch, float32 [1 + K, B, C, h, w]; short histories are filled with zeros."""
    size = max(len(picture.state) for picture in pictures)
    state = np.zeros((size, len(pictures), *pictures[0].state.shape[1:]), dtype=np.float32)
    for b, picture in enumerate(pictures):
        state[: len(picture.state), b] = picture.state
    return state


def picture_noise(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """Initial noise of one picture, float32 of unit variance: from its own seed alone."""
    rng = np.random.default_rng([_PICTURE_STREAM, seed])
    return rng.standard_normal(shape, dtype=np.float32)
