"""Steps of the torch backend: what a step reads and writes, the step, and runs of steps.

A step is a function of tensors that reads its own number on the device, so one recording serves all
steps of all runs of its bucket (`buckets.py`). A run keeps its own tensors. Where recordings are
kept, the run's are copied into the recording's when another run was there last, and the new state
comes back after each step: so runs of one bucket may take turns, in one thread or in many.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.derived import Derived
from bootpig_rt.backends.step_inputs import NO_LIMIT, canvas_of, rows_of_each
from bootpig_rt.backends.torch.buckets import Kinds, Layout, lay_out
from bootpig_rt.backends.torch.graphs import Kept, Lane
from bootpig_rt.backends.torch.tables import TableReader
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.models.rows import RowPlan, SharedRows, bucketed_rows, plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers, TextKVLayers

_MOST_STEPS = 1000
"""Room for the coefficients of a run in the buffers of a recording: a few hundred kilobytes."""

MOST_HISTORY = 2
"""Of the solvers that there are: recordings have room for it, whatever solvers a batch mixes."""


@dataclass
class StepTensors:
    """What the steps of a run read and write, on the device. Per step: the first axis is T.

    Attributes:
        state: float32 [1 + K, B, C, h, w], latents and the solver's history; written.
        estimate: float32 [B, C, h, w], x0 of the last step; written.
        step: int64 [1], the step to do.
        text: [N, S, sum of 2 H * D], keys and values of the rows' texts for every layer.
        image_scale: float32 [B].
        text_scale: float32 [B].
        timesteps: int64 [T, B].
        matrices: float32 [T, B, 1 + K, 2 + K].
        x0: float32 [T, B, 2].
        clip_weight: float32 [T, B].
        clip_range: float32 [1], x0 is clamped to plus or minus this where its weight is not 0.
        canvas: float32 [3, B, C, h, w], latents of the given pictures, the noise of the pictures,
            and latents of the given pictures with what is drawn in grey.
        canvas_weights: float32 [T, B, 2], of the first two at the level that a step arrives at.
        mask: float32 [B, 1, h, w], 1 where latents are drawn, 0 where they are the canvas's.
        entries: int32 [T], the entry of the table.
        rows_of_picture: int64 [3, B].
        picture_of_row: int64 [N].
        pair_of_row: int64 [N].
        picture_of_pair: int64 [U].
        refs: int32 [N, R].
        refs_of_pair: int32 [U, R].
        features: [N, C', h, w], of the deep blocks, written by steps that compute those and read by
            the others; [0] where none are kept.
    """

    state: Tensor
    estimate: Tensor
    step: Tensor
    text: Tensor
    image_scale: Tensor
    text_scale: Tensor
    timesteps: Tensor
    matrices: Tensor
    x0: Tensor
    clip_weight: Tensor
    clip_range: Tensor
    canvas: Tensor
    canvas_weights: Tensor
    mask: Tensor
    entries: Tensor
    rows_of_picture: Tensor
    picture_of_row: Tensor
    pair_of_row: Tensor
    picture_of_pair: Tensor
    refs: Tensor
    refs_of_pair: Tensor
    features: Tensor

    def room_for_all_steps(self) -> StepTensors:
        """Tensors of these shapes, with zeros, for as many steps as a run may have."""
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        for name in _PER_STEP:
            shapes[name] = (max(_MOST_STEPS, shapes[name][0]), *shapes[name][1:])
        return StepTensors(
            **{name: getattr(self, name).new_zeros(shape) for name, shape in shapes.items()}
        )

    def load(self, other: StepTensors) -> None:
        """Copy what a run has; of its own number of steps."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            mine[: len(theirs)].copy_(theirs, non_blocking=True)


_PER_STEP = ("timesteps", "matrices", "x0", "clip_weight", "canvas_weights", "entries")


@dataclass(frozen=True)
class StepProgram:
    """What does not change between the runs that share a recording.

    Attributes:
        base: The Base U-Net.
        text_widths: Of the keys, and of the values, of every cross-attention.
        dtype: That it computes in.
        merge: How several references of a row are combined.
        rows: The plan of the rows of one run; or their kinds and those of the pairs, for the plan
            that follows from the tensors.
        is_deep: The step computes the deep blocks, or reads their features.
    """

    base: BaseUNet
    text_widths: tuple[int, ...]
    dtype: torch.dtype
    merge: Merge
    rows: RowPlan | tuple[Kinds, Kinds]
    is_deep: bool = True

    def plan(self, tensors: StepTensors) -> RowPlan:
        """Which references each row reads."""
        if isinstance(self.rows, RowPlan):
            return self.rows
        kinds, kinds_of_pairs = self.rows
        shared = SharedRows(
            bucketed_rows(kinds_of_pairs, tensors.refs_of_pair),
            tensors.picture_of_pair,
            tensors.pair_of_row,
            tensors.picture_of_row,
        )
        return bucketed_rows(kinds, tensors.refs, shared)

    def text_layers(self, text: Tensor) -> TextKVLayers:
        """Keys and values of every layer, views of [N, S, sum of 2 H * D]."""
        parts = text.split([width for width in self.text_widths for _ in range(2)], dim=-1)
        return tuple(zip(parts[::2], parts[1::2], strict=True))


def take_step(program: StepProgram, tensors: StepTensors, table: ReferenceKVLayers | None) -> None:
    """Do one step in place: U-Net rows, guidance, solver. No value is read on the host.

    Args:
        program: What to compute.
        tensors: Whose state is replaced by the next.
        table: L pairs [E, N_ref, H, M, D], read at this step's entry.
    """

    def now(per_step: Tensor) -> Tensor:
        return per_step.index_select(0, tensors.step).squeeze(0)

    column = (-1, 1, 1, 1)
    latents, history = tensors.state[0], tensors.state[1:]
    read = latents
    if program.base.reads_canvas:
        read = torch.cat([latents, tensors.mask, tensors.canvas[2]], dim=1)
    output, features = program.base.draw(
        read.to(program.dtype),  # one a picture: the plan knows the pictures of its rows
        now(tensors.timesteps),
        program.text_layers(tensors.text),
        table,
        program.plan(tensors),
        merge=program.merge,
        entry=None if table is None else tensors.entries.index_select(0, tensors.step),
        features=None if program.is_deep else tensors.features,
    )
    if program.is_deep and tensors.features.numel():
        tensors.features.copy_(features)
    uncond, image, text_image = output.float()[tensors.rows_of_picture]
    guided = (
        uncond
        + tensors.image_scale.view(column) * (image - uncond)
        + tensors.text_scale.view(column) * (text_image - image)
    )
    state = torch.cat([torch.stack([latents, guided]), history])
    x0 = now(tensors.x0)[..., None, None, None]
    estimate = x0[:, 0] * latents + x0[:, 1] * guided
    # One term after another: those of a history that a solver lacks are zeros and change nothing.
    weights = now(tensors.matrices).permute(2, 1, 0)[..., None, None, None]
    following = weights[0] * state[0]
    for weight_of, part in zip(weights[1:], state[1:], strict=True):
        following = torch.addcmul(following, weight_of, part)
    weight = now(tensors.clip_weight).view(column)
    clipped = estimate.minimum(tensors.clip_range).maximum(-tensors.clip_range)
    following[0] += weight * (clipped - estimate)
    estimate = torch.where(weight != 0, clipped, estimate)
    signal, spread = now(tensors.canvas_weights)[..., None, None, None].unbind(1)
    given = torch.addcmul(signal * tensors.canvas[0], spread, tensors.canvas[1])
    is_drawn = tensors.mask > 0
    following[0] = torch.where(is_drawn, following[0], given)
    estimate = torch.where(is_drawn, estimate, tensors.canvas[0])
    tensors.state.copy_(following)
    tensors.estimate.copy_(estimate)


class TableBuffers:
    """Room for one entry of the tables of a batch, at addresses that recordings know.

    Args:
        shapes: [1, N_ref, H, M, D] of each layer; none without a table.
        like: Of the type and on the device of the buffers.
    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> None:
        """Allocate; slots that are read by no row are zeros."""
        self.layers: ReferenceKVLayers | None = None
        if shapes:
            empty = like.new_zeros
            self.layers = tuple((empty(shape), empty(shape)) for shape in shapes)
        self._held: tuple[list[weakref.ref[Tensor]], tuple[int, ...]] = [], ()

    def load(self, reader: TableReader, index: int) -> None:
        """Copy the entries of a step, unless they are there, whoever brought them."""
        if self.layers is None:
            return
        tables, entries = reader.reads(index)
        held, held_entries = self._held
        is_there = held_entries == entries and len(held) == len(tables)
        if is_there and all(one() is table for one, table in zip(held, tables, strict=True)):
            return
        self._held = [], ()
        reader.fill(self.layers, index)
        self._held = [weakref.ref(table) for table in tables], entries


class StepSlot:
    """The buffers of one bucket of steps, and the recordings of a step over them.

    Args:
        programs: What steps compute, by whether that holds the deep blocks; a recording each.
        like: Tensors of the shapes of the buffers.
        table: What steps read; shared with other slots.
        lane: Where it is recorded.
    """

    def __init__(
        self,
        programs: Mapping[bool, StepProgram],
        like: StepTensors,
        table: TableBuffers,
        lane: Lane,
    ) -> None:
        """Allocate, and record."""
        self.tensors = like.room_for_all_steps()
        self.table = table
        self._owner: weakref.ref[TorchRun] | None = None
        self._replays = {
            is_deep: lane.record(partial(take_step, program, self.tensors, table.layers))
            for is_deep, program in programs.items()
        }

    def step(self, run: TorchRun, index: int, *, is_deep: bool) -> None:
        """Do one step of a run; inside `Lane.work`."""
        if self._owner is None or self._owner() is not run:
            self.tensors.load(run.tensors)
        self._owner = None  # whatever ends this early, the next step starts from the run's own
        self.table.load(run.reader, index)
        self.tensors.step.fill_(index)
        self._replays[is_deep]()
        run.tensors.state.copy_(self.tensors.state)
        run.tensors.estimate.copy_(self.tensors.estimate)
        run.tensors.features.copy_(self.tensors.features)
        self._owner = weakref.ref(run)


class Recorded:
    """Recordings of steps and the buffers that they share.

    Args:
        count: Recordings that are kept.
    """

    def __init__(self, count: int) -> None:
        """Nothing is recorded yet."""
        self.slots: Kept[StepSlot] = Kept(count)
        self._tables: Kept[TableBuffers] = Kept(4)

    def slot(
        self,
        key: Hashable,
        programs: Mapping[bool, StepProgram],
        like: StepTensors,
        table: tuple[tuple[int, ...], ...],
        lane: Lane,
    ) -> StepSlot:
        """The recording of a bucket."""
        buffers = self._tables.get(table, lambda: TableBuffers(table, like.text))
        # A recording reads its own buffers, so buffers that were made anew need a recording too.
        key = (key, id(buffers))
        return self.slots.get(key, lambda: StepSlot(programs, like, buffers, lane))

    def clear(self) -> None:
        """Forget all; runs keep theirs."""
        self.slots.clear()
        self._tables.clear()


@dataclass(frozen=True, eq=False)
class ProjectedTexts:
    """Keys and values of distinct texts, [P, S, sum of 2 H * D], and the widths of the parts."""

    tensor: Tensor
    widths: tuple[int, ...]


class TorchRun:
    """One batch on its way through the steps. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        batch: What the steps read.
        base: The Base U-Net.
        texts: What was projected for other runs.
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
        texts: Derived[ProjectedTexts],
        dtype: torch.dtype,
        lane: Lane,
        recorded: Recorded,
        within_memory: Callable[[Callable[[], None]], None],
    ) -> None:
        """Upload everything that the steps read."""
        self._lane = lane
        self._within_memory = within_memory
        self._pictures, self._planes = batch.state.shape[1], 1 + batch.solver.history_size
        with lane.work():
            self.reader = TableReader(batch.tables, batch.entry_of_step, lane.device, dtype)
            self.whole = None if lane.records else self.reader.whole

            def project() -> ProjectedTexts:
                layers = base.project_text(_text_states(batch, lane, dtype))
                parts = [part for layer in layers for part in layer]
                widths = tuple(keys.shape[-1] for keys, _ in layers)
                return ProjectedTexts(torch.cat(parts, dim=-1), widths)

            self._texts = texts.of([batch.prompt_embeds], project)
            widths = self._texts.widths
            layout = lay_out(batch)
            self._deep_steps = batch.deep_steps
            self._slot: StepSlot | None = None
            place = layout.place
            if not lane.records:
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
            planes = max(self._planes, 1 + MOST_HISTORY) if lane.records else self._planes
            self.tensors = _upload(batch, self._texts.tensor, layout, entries, planes, lane)
            self._rows: list[Tensor] = []  # of each picture, among those of the features
            if batch.deep_steps is not None:
                self._rows = [
                    lane.upload(place[rows]) for rows in rows_of_each(batch.picture_of_row)
                ]
                size = (len(layout.text_of_row), base.deep_channels(), *batch.state.shape[-2:])
                self.tensors.features = self._texts.tensor.new_zeros(size)
                for rows, given in zip(self._rows, batch.features, strict=False):
                    self.tensors.features[rows] = given
            if not lane.records:
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
            take_step(self._programs[is_deep], self.tensors, table)

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
    texts: Tensor,
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
    tensors = pictures(state, 1)
    return StepTensors(
        state=tensors,
        estimate=tensors[0].clone(),
        step=lane.upload(np.zeros(1, np.int64)),
        text=texts.index_select(0, lane.upload(layout.text_of_row)),
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
        features=texts.new_zeros(0),
    )
