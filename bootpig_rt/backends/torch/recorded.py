"""Recordings of steps, one for each bucket, over buffers that they share.

A run keeps its own tensors. They are copied into the recording's when another run was there last,
and the new state comes back after each step: so runs of one bucket may take turns, in one thread or
in many.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from bootpig_rt.backends.torch.graphs import Kept, Lane
from bootpig_rt.backends.torch.steps import StepProgram, StepTensors, take_step
from bootpig_rt.backends.torch.tables import TableReader
from bootpig_rt.models.unet import ReferenceKVLayers

if TYPE_CHECKING:
    from bootpig_rt.backends.torch.runs import TorchRun


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
