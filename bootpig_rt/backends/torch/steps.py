"""Steps of the torch backend: what a step reads and writes, the step, and runs of steps.

A step is a function of tensors that reads its own number on the device, so one recording serves all
steps of all runs of its shape. A run keeps its own tensors. Where recordings are kept, the run's
are copied into the recording's when another run was there last, and the new state comes back after
each step: so runs of one shape may take turns, in one thread or in many.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import DenoiseBatch, FloatArray
from bootpig_rt.backends.torch.graphs import Kept, Lane
from bootpig_rt.backends.torch.tables import TableReader
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.models.rows import RowPlan, plan_rows
from bootpig_rt.models.unet import ReferenceKVLayers, TextKVLayers

_MOST_STEPS = 1000
"""Room for the coefficients of a run in the buffers of a recording: a few hundred kilobytes."""

_NUMBERS = itertools.count()
"""Tell runs apart, those that are gone as well."""


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
        entries: int32 [T], the entry of the table.
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
    entries: Tensor

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


_PER_STEP = ("timesteps", "matrices", "x0", "clip_weight", "entries")


@dataclass(frozen=True)
class StepProgram:
    """What does not change between the runs that share a recording.

    Attributes:
        base: The Base U-Net.
        text_widths: Of the keys, and of the values, of every cross-attention.
        dtype: That it computes in.
        plan: Of the rows.
        rows_of_picture: int64 [3, B].
        merge: How several references of a row are combined.
        clip: Clamp x0 to plus or minus this where its weight is not 0; None: never.
    """

    base: Callable[..., Tensor]
    text_widths: tuple[int, ...]
    dtype: torch.dtype
    plan: RowPlan
    rows_of_picture: Tensor
    merge: Merge
    clip: float | None

    @classmethod
    def of(
        cls,
        batch: DenoiseBatch,
        base: Callable[..., Tensor],
        text_widths: tuple[int, ...],
        dtype: torch.dtype,
        lane: Lane,
    ) -> StepProgram:
        """Plan the rows of a batch."""
        plan = plan_rows(
            torch.tensor(batch.ref_of_row),
            sum(batch.num_references),
            torch.tensor(batch.picture_of_row),
            device=lane.device,
        )
        return cls(
            base,
            text_widths,
            dtype,
            plan,
            lane.upload(batch.rows_of_picture),
            batch.merge,
            batch.solver.clip_sample_range,
        )

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
    output = program.base(
        latents.to(program.dtype),  # one a picture: the plan knows the pictures of its rows
        now(tensors.timesteps),
        program.text_layers(tensors.text),
        table,
        program.plan,
        merge=program.merge,
        entry=None if table is None else tensors.entries.index_select(0, tensors.step),
    ).float()
    uncond, image, text_image = output[program.rows_of_picture]
    guided = (
        uncond
        + tensors.image_scale.view(column) * (image - uncond)
        + tensors.text_scale.view(column) * (text_image - image)
    )
    state = torch.cat([torch.stack([latents, guided]), history])
    x0 = now(tensors.x0)[..., None, None, None]
    estimate = x0[:, 0] * latents + x0[:, 1] * guided
    following = torch.einsum("bij,jb...->ib...", now(tensors.matrices), state)
    if program.clip is not None:
        weight = now(tensors.clip_weight).view(column)
        clipped = estimate.clamp(-program.clip, program.clip)
        following[0] += weight * (clipped - estimate)
        estimate = torch.where(weight != 0, clipped, estimate)
    tensors.state.copy_(following)
    tensors.estimate.copy_(estimate)


class StepSlot:
    """The buffers of one shape of steps, and the recording of a step over them.

    Args:
        program: What a step computes.
        like: Tensors of the shapes of the buffers.
        table: Shapes [E, N_ref, H, M, D] of the table's layers; empty without a table.
        lane: Where it is recorded.
    """

    def __init__(
        self,
        program: StepProgram,
        like: StepTensors,
        table: tuple[tuple[int, ...], ...],
        lane: Lane,
    ) -> None:
        """Allocate, and record."""
        self.tensors = like.room_for_all_steps()
        empty = self.tensors.text.new_zeros
        self.table: ReferenceKVLayers | None = None
        if table:
            self.table = tuple((empty(shape), empty(shape)) for shape in table)
        self._owner: weakref.ref[TorchRun] | None = None
        self._held: Any = None
        self._replay = lane.record(lambda: take_step(program, self.tensors, self.table))

    def step(self, run: TorchRun, index: int) -> None:
        """Do one step of a run; inside `Lane.work`."""
        if self._owner is None or self._owner() is not run:
            self.tensors.load(run.tensors)
        self._owner = None  # whatever ends this early, the next step starts from the run's own
        self._load_table(run, index)
        self.tensors.step.fill_(index)
        self._replay()
        run.tensors.state.copy_(self.tensors.state)
        run.tensors.estimate.copy_(self.tensors.estimate)
        self._owner = weakref.ref(run)

    def _load_table(self, run: TorchRun, index: int) -> None:
        """Copy the table, or the entry of the step, unless it is there."""
        if self.table is None:
            return
        if run.whole is not None:
            first = run.whole[0][0]
            if isinstance(self._held, weakref.ref) and self._held() is first:
                return
            self._held = None
            for mine, theirs in zip(self.table, run.whole, strict=True):
                for buffer, part in zip(mine, theirs, strict=True):
                    buffer.copy_(part)
            self._held = weakref.ref(first)
            return
        wanted = (run.number, run.reader.entries(index))
        if self._held != wanted:
            self._held = None
            run.reader.fill(self.table, index)
            self._held = wanted


class TorchRun:
    """One batch on its way through the steps. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        batch: What the steps read.
        state: To go on from; None starts from the batch's noise.
        base: The Base U-Net.
        project_text: States of texts -> keys and values of its cross-attentions.
        dtype: That it computes in.
        lane: Where the steps run.
        slots: Recordings that there are, where the lane keeps any.
        table_bytes: Tables up to this size are held whole by a recording.
        within_memory: Calls what it is given, and says what a lack of memory means.
    """

    def __init__(
        self,
        batch: DenoiseBatch,
        state: FloatArray | None,
        *,
        base: Callable[..., Tensor],
        project_text: Callable[[Tensor], TextKVLayers],
        dtype: torch.dtype,
        lane: Lane,
        slots: Kept[StepSlot],
        table_bytes: int,
        within_memory: Callable[[Callable[[], None]], None],
    ) -> None:
        """Upload everything that the steps read."""
        self._lane = lane
        self._within_memory = within_memory
        with lane.work():
            self.reader = TableReader(batch.tables, batch.entry_of_step, lane.device, dtype)
            self.whole = self.reader.whole
            if lane.records and self.whole is not None:
                size = sum(part.nbytes for layer in self.whole for part in layer)
                self.whole = None if size > table_bytes else self.whole
            text = project_text(_text_states(batch, lane, dtype))
            self.tensors = _upload(
                batch, state, text, lane=lane, reads_whole=self.whole is not None
            )
            self.number = next(_NUMBERS)
            text_widths = tuple(keys.shape[-1] for keys, _ in text)

            def program() -> StepProgram:
                return StepProgram.of(batch, base, text_widths, dtype, lane)

            self._slot: StepSlot | None = None
            if not lane.records:
                self._program = program()
                return
            table = self._table_shapes()
            self._slot = slots.get(
                _shape_key(batch, self.tensors, table),
                lambda: StepSlot(program(), self.tensors, table, lane),
            )

    def step(self, index: int) -> None:
        """Do one step: U-Net rows, guidance, solver."""
        self._within_memory(lambda: self._step(index))

    def _step(self, index: int) -> None:
        with self._lane.work():
            if self._slot is not None:
                self._slot.step(self, index)
                return
            self.tensors.step.fill_(index)
            table = self.whole
            if table is None:
                entry = self.reader.read(index)
                if entry is not None:
                    table = tuple((k.unsqueeze(0), v.unsqueeze(0)) for k, v in entry)
            take_step(self._program, self.tensors, table)

    def state(self) -> FloatArray:
        """Current sample, then history, float32 [1 + K, B, C, h, w]."""
        return self._read(self.tensors.state)

    def latents(self) -> FloatArray:
        """Current sample, float32 [B, C, h, w]."""
        return self._read(self.tensors.state[0])

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        return self._read(self.tensors.estimate)

    def _read(self, tensor: Tensor) -> FloatArray:
        with torch.inference_mode(), self._lane.on_stream():
            return self._lane.download(tensor)

    def _table_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the buffers of a recording: the whole table, or one entry."""
        if self.whole is not None:
            return tuple(tuple(k.shape) for k, _ in self.whole)
        return tuple((1, *shape) for shape in self.reader.entry_shapes)


def _text_states(batch: DenoiseBatch, lane: Lane, dtype: torch.dtype) -> Tensor:
    """Of the rows, [N, S, E]."""
    texts = batch.prompt_embeds
    if isinstance(texts, np.ndarray):
        texts = lane.upload(texts).to(dtype)
    of_rows: Tensor = texts[lane.upload(batch.text_of_row)]
    return of_rows


def _upload(
    batch: DenoiseBatch,
    state: FloatArray | None,
    text: TextKVLayers,
    *,
    lane: Lane,
    reads_whole: bool,
) -> StepTensors:
    solver = batch.solver
    if state is None:
        state = np.zeros((1 + solver.history_size, *batch.latents.shape), np.float32)
        state[0] = batch.latents
    entries = np.zeros(solver.num_steps, np.int32)
    if reads_whole:
        entries = batch.entry_of_step[0].astype(np.int32)
    tensors = lane.upload(state)
    return StepTensors(
        state=tensors,
        estimate=tensors[0].clone(),
        step=lane.upload(np.zeros(1, np.int64)),
        text=torch.cat([part for layer in text for part in layer], dim=-1),
        image_scale=lane.upload(batch.image_guidance_scale),
        text_scale=lane.upload(batch.text_guidance_scale),
        timesteps=lane.upload(solver.timesteps),
        matrices=lane.upload(solver.matrices),
        x0=lane.upload(solver.x0),
        clip_weight=lane.upload(solver.clip_weight),
        entries=lane.upload(entries),
    )


def _shape_key(
    batch: DenoiseBatch, tensors: StepTensors, table: tuple[tuple[int, ...], ...]
) -> Hashable:
    """Equal for runs that one recording serves: shapes, and which rows there are."""
    rows = (batch.ref_of_row, batch.picture_of_row, batch.rows_of_picture)
    return (
        tuple(tensors.state.shape),
        tuple(tensors.text.shape),
        table,
        tuple((one.shape, one.tobytes()) for one in rows),
        batch.merge,
        batch.solver.clip_sample_range,
    )
