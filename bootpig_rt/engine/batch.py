"""Pictures on their way, and the batches that they share.

Pictures of one batch may be at different steps of different solvers. A run of the backend lasts as
long as no picture's rows change: one that leaves its reference window or its guidance interval,
that is done, or that joins, ends the run, and the next one goes on from the state that it left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseBatch, DenoiseRun, FloatArray, IntArray
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.engine.guidance import PictureBranches, plan_guidance
from bootpig_rt.engine.plan import Plan
from bootpig_rt.engine.text_states import Texts
from bootpig_rt.reference.reference_table import ReferenceTable

if TYPE_CHECKING:
    from bootpig_rt.engine.job import Job

# Keeps the draws of picture noise apart from those of reference noise with the same seed.
_PICTURE_STREAM = 0x71C

Group: TypeAlias = tuple[int, int, str, int]
"""Width, height and merge, which pictures of one launch share, and a number to keep others out."""


class Picture:
    """One picture of a job, waiting or running. Touched by the thread that runs the engine alone.

    Attributes:
        job: Whose picture.
        number: Which one of the job.
        plan: What it is.
        table: Of its subject; None until it is there, and without a subject.
        step: Steps done.
        state: float32 [1 + K, C, h, w], latents and the solver's history after those steps.
        waits: It is in the queue.
        passed_over: Steps in which others went ahead, for lack of room for this one.
        is_apart: It shares no launch: one that it was part of has failed.
        joined: Launches of its batch before it joined; equal for pictures at the same step.
    """

    def __init__(self, job: Job, number: int, plan: Plan) -> None:
        """Draw the noise."""
        self.job, self.number, self.plan = job, number, plan
        self.table: ReferenceTable | None = None
        self.step = 0
        shape = plan.latents_shape
        self.state: FloatArray = np.zeros((1 + plan.solver.history_size, *shape), np.float32)
        self.state[0] = picture_noise(plan.request.seed or 0, shape)
        self.waits = False
        self.passed_over = 0
        self.is_apart = False
        self.joined = 0

    @property
    def group(self) -> Group:
        """What it shares with all pictures of its launches."""
        plan = self.plan
        return plan.width_px, plan.height_px, plan.merge, id(self) if self.is_apart else 0

    @property
    def scales(self) -> tuple[float, float]:
        """s_image and s_text of the next step."""
        if not self.plan.is_guided[self.step]:
            return 1.0, 1.0
        return self.plan.image_guidance_scale, self.plan.text_guidance_scale

    def steps_alike(self) -> int:
        """How many steps from the next one on have its rows: 1 or more."""
        phases = np.stack([self.plan.entries[self.step :] >= 0, self.plan.is_guided[self.step :]])
        changes = np.flatnonzero((phases != phases[:, :1]).any(axis=0))
        return int(changes[0]) if len(changes) else int(phases.shape[1])


class Batch:
    """Pictures that share launches, and the run that they are in. Runs end when pictures change.

    Attributes:
        pictures: Of one group.
        launches: Steps so far, over all runs.
        run: What is on the device; None between two runs.
        num_rows: Rows of a launch of the run.
        done: Steps of the run so far.
        is_over: No step of the run is left.
    """

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.launches = 0
        self.run: DenoiseRun | None = None
        self.num_rows = 0
        self._timesteps: IntArray | None = None
        self._num_steps = self.done = 0
        self.is_over = False

    def begin(self, backend: Backend, texts: Texts) -> None:
        """Upload what the next steps read."""
        self._num_steps = min(picture.steps_alike() for picture in self.pictures)
        self.done, self.is_over = 0, False
        state = joint_state(self.pictures)
        batch = build_batch(self.pictures, self._num_steps, texts, latents=state[0])
        self._timesteps, self.num_rows = batch.solver.timesteps, len(batch.picture_of_row)
        self.run = backend.start(batch, state)

    def step(self) -> int:
        """One launch. Returns the timestep of the first picture."""
        assert self.run is not None
        assert self._timesteps is not None
        self.run.step(self.done)
        self.done += 1
        self.launches += 1
        self.is_over = self.done == self._num_steps
        return int(self._timesteps[self.done - 1, 0])

    def estimate(self) -> Callable[[], FloatArray]:
        """Gives what the last step took for the finished latents, float32 [B, C, h, w]."""
        assert self.run is not None
        return self.run.estimate

    def close(self) -> None:
        """End the run, after all of its steps or before: its pictures get their states."""
        assert self.run is not None
        state, self.run = self.run.state(), None
        hand_back(self.pictures, state, self.done)

    def drop(self) -> None:
        """Forget the run: its pictures stand where it began, and make its steps again."""
        if self.run is not None:
            for picture in self.pictures:
                picture.job.done_steps -= self.done
        self.run = None


def texts_of(pictures: Sequence[Picture]) -> list[str]:
    """Prompts and negative prompts of some pictures."""
    requests = [picture.plan.request for picture in pictures]
    return [text for one in requests for text in (one.prompt, one.negative_prompt)]


def build_batch(
    pictures: Sequence[Picture], num_steps: int, texts: Texts, *, latents: FloatArray
) -> DenoiseBatch:
    """Lay out the next steps of some pictures.

    Args:
        pictures: Of one size and one merge, none of them done.
        num_steps: T, steps in which no picture's rows change.
        texts: Among others those of `texts_of`, with their states.
        latents: float32 [B, C, h, w], what the pictures are now.
    """
    names, prompt_embeds = texts
    # A table is one slot for all pictures that read the same entries at the same steps. Pictures of
    # one subject that are at different steps have a slot each; the table itself is shared.
    slots: dict[tuple[int, tuple[int, ...]], tuple[ReferenceTable, int]] = {}
    branches = []
    count = 0
    for picture in pictures:
        request = picture.plan.request
        references: tuple[int, ...] = ()
        entries = picture.plan.entries[picture.step : picture.step + num_steps].tolist()
        table = picture.table
        if table is not None and entries[0] >= 0:
            slot = (id(table.data), tuple(entries))
            if slot not in slots:
                slots[slot] = (table, count)
                count += table.key.num_references
            first = slots[slot][1]
            references = tuple(range(first, first + table.key.num_references))
        image_scale, text_scale = picture.scales
        branches.append(
            PictureBranches(
                prompt=names.index(request.prompt),
                negative_prompt=names.index(request.negative_prompt),
                references=references,
                image_guidance_scale=image_scale,
                text_guidance_scale=text_scale,
            )
        )
    rows = plan_guidance(branches)
    entry_of_step = np.array([entries for _, entries in slots], dtype=np.int64)
    return DenoiseBatch(
        latents=latents,
        prompt_embeds=prompt_embeds,
        text_of_row=rows.text_of_row,
        picture_of_row=rows.picture_of_row,
        ref_of_row=rows.ref_of_row,
        rows_of_picture=rows.rows_of_picture,
        image_guidance_scale=np.array([b.image_guidance_scale for b in branches], dtype=np.float32),
        text_guidance_scale=np.array([b.text_guidance_scale for b in branches], dtype=np.float32),
        tables=tuple(table.data for table, _ in slots.values()),
        num_references=tuple(table.key.num_references for table, _ in slots.values()),
        entry_of_step=entry_of_step.reshape(len(slots), num_steps),
        solver=BatchSolver.of(
            [picture.plan.solver for picture in pictures],
            starts=[picture.step for picture in pictures],
            num_steps=num_steps,
        ),
        merge=pictures[0].plan.merge,
    )


def joint_state(pictures: Sequence[Picture]) -> FloatArray:
    """State of a batch, float32 [1 + K, B, C, h, w]; short histories are filled with zeros."""
    size = max(len(picture.state) for picture in pictures)
    state = np.zeros((size, len(pictures), *pictures[0].state.shape[1:]), dtype=np.float32)
    for b, picture in enumerate(pictures):
        state[: len(picture.state), b] = picture.state
    return state


def hand_back(pictures: Sequence[Picture], state: FloatArray, steps: int) -> None:
    """Give every picture its part of a batch's state after some steps: undoes `joint_state`."""
    for b, picture in enumerate(pictures):
        picture.state = state[: len(picture.state), b].copy()
        picture.step += steps


def picture_noise(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """Initial noise of one picture, float32 of unit variance: from its own seed alone."""
    rng = np.random.default_rng([_PICTURE_STREAM, seed])
    return rng.standard_normal(shape, dtype=np.float32)
