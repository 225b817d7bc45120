"""Runs of the torch backend: a batch on its way through the steps, recorded or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.derived import Derived
from bootpig_rt.backends.step_inputs import NO_LIMIT, canvas_of, rows_of_each
from bootpig_rt.backends.torch.buckets import Layout, lay_out
from bootpig_rt.backends.torch.controls import Controls, Hints
from bootpig_rt.backends.torch.graphs import Lane
from bootpig_rt.backends.torch.recorded import Recorded, StepSlot
from bootpig_rt.backends.torch.steps import MOST_HISTORY, StepProgram, StepTensors, take_step
from bootpig_rt.backends.torch.tables import TableReader
from bootpig_rt.models.control import Control
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet


@dataclass(frozen=True, eq=False)
class ProjectedTexts:
    """Keys and values of distinct texts, [P, S, sum of 2 H * D], and the widths of the parts.

    `added` [P, T] is what they add to the embedding of timesteps; T is 0 where nothing is.
    """

    tensor: Tensor
    widths: tuple[int, ...]
    added: Tensor


class TorchRun:
    """One batch on its way through the steps. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        batch: What the steps read.
        base: The Base U-Net.
        controls: By kind.
        texts: What was projected for other runs.
        hints: Maps that were embedded for other runs.
        dtype: That it computes in.
        lane: Where the steps run.
        recorded: Recordings that there are, where the lane keeps any.
        within_memory: Calls what it is given, and says what a lack of memory means.
    """

    def __init__(
        self,
        batch: DenoiseBatch,
        *,
        base: BaseUNet,
        controls: Mapping[str, Control],
        texts: Derived[ProjectedTexts],
        hints: Derived[Hints],
        dtype: torch.dtype,
        lane: Lane,
        recorded: Recorded,
        within_memory: Callable[[Callable[[], None]], None],
    ) -> None:
        """Upload everything that the steps read."""
        self._lane = lane
        self._within_memory = within_memory
        self._pictures, self._planes = batch.state.shape[1], 1 + batch.solver.history_size
        records = lane.records and not batch.controls  # steps with controls run as they are
        with lane.work():
            self.reader = TableReader(batch.tables, batch.entry_of_step, lane.device, dtype)
            self.whole = None if records else self.reader.whole
            self._controls: Controls | None = None
            if batch.controls:
                states = _text_states(batch, lane, dtype)
                self._controls = Controls(
                    batch, nets=controls, states=states, dtype=dtype, lane=lane, hints=hints
                )

            def project() -> ProjectedTexts:
                states = _text_states(batch, lane, dtype)
                layers, added = base.project_text(states), base.split_text(states)[1]
                added = states.new_zeros(len(states), 0) if added is None else added
                parts = [part for layer in layers for part in layer]
                widths = tuple(keys.shape[-1] for keys, _ in layers)
                return ProjectedTexts(torch.cat(parts, dim=-1), widths, added)

            self._texts = texts.of([batch.prompt_embeds], project)
            widths = self._texts.widths
            layout = lay_out(batch)
            self._deep_steps = batch.deep_steps
            self._slot: StepSlot | None = None
            place = layout.place
            if not records:
                plan = plan_rows(
                    torch.tensor(batch.ref_of_row),
                    sum(batch.num_references),
                    torch.tensor(batch.picture_of_row),
                    device=lane.device,
                )
                layout = replace(
                    layout,
                    pictures=self._pictures,
                    text_of_row=batch.text_of_row,
                    rows_of_picture=batch.rows_of_picture,
                )
                self._programs = self._programs_of(
                    StepProgram(base, widths, dtype, batch.merge, plan)
                )
                place = np.arange(plan.num_rows)
                if plan.inverse is not None:
                    place = plan.inverse.cpu().numpy()
            entries = batch.entry_of_step[0] if self.whole is not None else None
            planes = max(self._planes, 1 + MOST_HISTORY) if records else self._planes
            self.tensors = _upload(batch, self._texts, layout, entries, planes, lane)
            self._rows: list[Tensor] = []  # of each picture, among those of the features
            if batch.deep_steps is not None:
                self._rows = [
                    lane.upload(place[rows]) for rows in rows_of_each(batch.picture_of_row)
                ]
                size = (len(layout.text_of_row), base.deep_channels(), *batch.state.shape[-2:])
                self.tensors.features = self._texts.tensor.new_zeros(size)
                for rows, given in zip(self._rows, batch.features, strict=False):
                    self.tensors.features[rows] = given
            if not records:
                return
            merge = batch.merge if max(slots for slots, _ in layout.kinds) > 1 else "argmax"
            shapes = [tuple(one.shape) for one in (self.tensors.state, self.tensors.text)]
            table = tuple(
                (1, layout.references, *shape[1:])
                for shape in (self.reader.entry_shapes if layout.references else ())
            )
            kinds = layout.kinds, layout.kinds_of_pairs
            programs = self._programs_of(StepProgram(base, widths, dtype, merge, kinds))
            features = tuple(self.tensors.features.shape)
            key = (*shapes, features, table, layout.key, merge, *programs)
            self._slot = recorded.slot(key, programs, self.tensors, table, lane)

    def _programs_of(self, program: StepProgram) -> dict[bool, StepProgram]:
        """By whether they compute the deep blocks, those that the steps need."""
        wanted = {True} if self._deep_steps is None else set(self._deep_steps.tolist())
        return {is_deep: replace(program, is_deep=is_deep) for is_deep in sorted(wanted)}

    def step(self, index: int) -> None:
        """Do one step: U-Net rows, guidance, solver."""
        self._within_memory(lambda: self._step(index))

    def _step(self, index: int) -> None:
        with self._lane.work():
            is_deep = self._deep_steps is None or bool(self._deep_steps[index])
            if self._slot is not None:
                self._slot.step(self, index, is_deep=is_deep)
                return
            self.tensors.step.fill_(index)
            table = self.whole
            if table is None:
                entry = self.reader.read(index)
                if entry is not None:
                    table = tuple((k.unsqueeze(0), v.unsqueeze(0)) for k, v in entry)
            residuals: Sequence[Tensor] = ()
            if self._controls is not None:
                now = self.tensors.timesteps[index]
                residuals = self._controls.residuals(self.tensors.state[0], now)
            take_step(self._programs[is_deep], self.tensors, table, residuals)

    def state(self) -> FloatArray:
        """Current sample, then history, float32 [1 + K, B, C, h, w]."""
        return self._read(self.tensors.state[: self._planes, : self._pictures])

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        return self._read(self.tensors.estimate[: self._pictures])

    def features(self) -> tuple[Tensor | None, ...]:
        """What the deep blocks gave last, of each picture [rows, C', h, w], on the device."""
        if self._deep_steps is None:
            return (None,) * int(self._pictures)
        with self._lane.work():
            found = [self.tensors.features[rows] for rows in self._rows]
        return tuple(found)

    def _read(self, tensor: Tensor) -> FloatArray:
        with torch.inference_mode(), self._lane.on_stream():
            return self._lane.download(tensor)


def _text_states(batch: DenoiseBatch, lane: Lane, dtype: torch.dtype) -> Tensor:
    """Of the distinct texts, [P, S, E]."""
    texts = batch.prompt_embeds
    if isinstance(texts, np.ndarray):
        texts = lane.upload(texts).to(dtype)
    states: Tensor = texts
    return states


def _upload(
    batch: DenoiseBatch,
    texts: ProjectedTexts,
    layout: Layout,
    entries: IntArray | None,
    planes: int,
    lane: Lane,
) -> StepTensors:
    """What the steps read: pictures and history rounded up with zeros, rows as they are laid out.

    `planes` is the room for the sample and the history, 1 + K'.
    """
    solver = batch.solver
    if entries is None:
        entries = np.zeros(solver.num_steps, np.int64)
    clip, canvas = solver.clip_sample_range, canvas_of(batch)

    def pictures(array: np.ndarray[Any, Any], axis: int) -> Tensor:
        more = [(0, 0)] * array.ndim
        more[axis] = (0, layout.pictures - array.shape[axis])
        return lane.upload(np.pad(array, more) if more[axis][1] else array)

    state = np.pad(batch.state, [(0, planes - len(batch.state)), *[(0, 0)] * 4])
    history = (0, planes - 1 - solver.history_size)
    matrices = np.pad(solver.matrices, [(0, 0), (0, 0), history, history])
    tensors, text_of_row = pictures(state, 1), lane.upload(layout.text_of_row)
    return StepTensors(
        state=tensors,
        estimate=tensors[0].clone(),
        step=lane.upload(np.zeros(1, np.int64)),
        text=texts.tensor.index_select(0, text_of_row),
        added=texts.added.index_select(0, text_of_row),
        image_scale=pictures(batch.image_guidance_scale, 0),
        text_scale=pictures(batch.text_guidance_scale, 0),
        timesteps=pictures(solver.timesteps, 1),
        matrices=pictures(matrices, 1),
        x0=pictures(solver.x0, 1),
        clip_weight=pictures(solver.clip_weight, 1),
        clip_range=lane.upload(np.array([NO_LIMIT if clip is None else clip], np.float32)),
        canvas=pictures(canvas.latents, 1),
        canvas_weights=pictures(canvas.weights, 1),
        mask=pictures(canvas.mask, 0),
        entries=lane.upload(entries.astype(np.int32)),
        rows_of_picture=lane.upload(layout.rows_of_picture),
        picture_of_row=lane.upload(layout.picture_of_row),
        pair_of_row=lane.upload(layout.pair_of_row),
        picture_of_pair=lane.upload(layout.picture_of_pair),
        refs=lane.upload(layout.refs),
        refs_of_pair=lane.upload(layout.refs_of_pair),
        features=texts.tensor.new_zeros(0),
    )
