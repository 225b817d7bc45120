"""From a `DenoiseBatch` to the arrays that the graph `denoise_step` reads. numpy only.

The graph wants rows without references ahead of those with, one flat reference table, and for each
step flat indices into it. A table's passes lie entry by entry, reference by reference; those of the
next table follow. A table that several pictures read at different steps lies there once: their
indices differ, the table does not. Rows that are alike until they meet their text make one pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.base import BatchCanvas, DenoiseBatch, FloatArray, IntArray
from bootpig_rt.errors import ParameterError

NO_LIMIT = 3e38
"""`clip_range` of a solver that does not clamp x0."""


OF_PAIRS = ("pair_of_row", "picture_of_pair", "ref_of_pair")
"""What steps lack whose rows differ from the first block on: those of pairs that are told sizes."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What the graph reads, but for text states and tables, which are on the device already.

    Attributes:
        arrays: Name of the input -> float32 or int64 array; all but `step` stay from step to step.
        text_of_row: int64 [N], for the graph `text_kv`.
        order: int64 [N], the row of the batch that lies at each place.
        num_steps: T.
        slots: R, references of the row that has most; 1 where no row has any.
        tables: Those of the flat table, in a row. The same set of them always has the same order.
    """

    arrays: dict[str, FloatArray | IntArray]
    text_of_row: IntArray
    order: IntArray
    num_steps: int
    slots: int
    tables: list[Any]


def step_inputs(batch: DenoiseBatch, *, streams: bool = False) -> StepInputs:
    """Lay out a batch.

    Args:
        batch: The batch. Its tables say how many `entries` they have, and are told apart by
            identity: equal ones are the same object, because the pipeline asks a store for them.
        streams: The flat table has one entry of each table, another one at each step.

    Raises:
        ParameterError: A step reads an entry that its table lacks.
    """
    if streams:
        tables, table_of_slot = list(batch.tables), list(range(len(batch.tables)))
        entries = [1] * len(tables)
        batch = replace(batch, entry_of_step=np.zeros_like(batch.entry_of_step))
    else:
        tables = sorted({id(table): table for table in batch.tables}.values(), key=id)
        places = {id(table): place for place, table in enumerate(tables)}
        table_of_slot = [places[id(table)] for table in batch.tables]
        entries = [table.entries for table in tables]
    solver = batch.solver
    order, ref_rows = _sort_rows(batch.ref_of_row)
    position = np.argsort(order)
    flat = _flat_references(ref_rows, batch, entries, table_of_slot)
    state = np.zeros((solver.matrices.shape[2], *batch.state.shape[1:]), dtype=np.float32)
    state[: len(batch.state)] = batch.state
    pictures, num_plain = batch.picture_of_row[order], len(order) - len(ref_rows)
    first, pair_of_row = _pairs(pictures, ref_rows)
    clip, canvas = solver.clip_sample_range, canvas_of(batch)
    arrays: dict[str, FloatArray | IntArray] = {
        "state": state,
        "timesteps": solver.timesteps,
        "matrices": solver.matrices,
        "x0": solver.x0,
        "clip_weight": solver.clip_weight,
        "clip_range": np.array([NO_LIMIT if clip is None else clip], dtype=np.float32),
        "canvas": canvas.latents,
        "canvas_weights": canvas.weights,
        "mask": canvas.mask,
        "picture_of_row": pictures,
        "rows_of_picture": position[batch.rows_of_picture],
        "image_guidance_scale": batch.image_guidance_scale,
        "text_guidance_scale": batch.text_guidance_scale,
        "ref_of_row": flat,
        "pair_of_row": pair_of_row,
        "picture_of_pair": pictures[first],
        "ref_of_pair": np.ascontiguousarray(flat[:, first[first >= num_plain] - num_plain]),
    }
    return StepInputs(arrays, batch.text_of_row[order], order, len(flat), flat.shape[2], tables)


def graph_name(merge: str, slots: int, *, is_deep: bool = True) -> str:
    """The graph that draws rows with up to `slots` references each."""
    kind = "denoise_step" if is_deep else "shallow_step"
    return kind if slots == 1 else f"{kind}_{merge}"


def canvas_of(batch: DenoiseBatch) -> BatchCanvas:
    """The given pictures of a batch; where it has none, those that change nothing."""
    if batch.canvas is not None:
        return batch.canvas
    count, _, height, width = batch.state.shape[1:]
    return BatchCanvas(
        latents=np.zeros((3, *batch.state.shape[1:]), np.float32),
        weights=np.zeros((len(batch.solver.timesteps), count, 2), np.float32),
        mask=np.ones((count, 1, height, width), np.float32),
    )


def rows_of_each(picture_of_row: IntArray) -> list[IntArray]:
    """Where the rows of each picture lie, in their order, which is the same in any company."""
    return [np.flatnonzero(picture_of_row == b) for b in range(int(picture_of_row.max()) + 1)]


def room_for_features(
    batch: DenoiseBatch, laid_out: StepInputs, *, channels: int, dtype: Any
) -> tuple[npt.NDArray[Any], list[IntArray]]:
    """Where steps with deep blocks leave their features, and steps without read them.

    Args:
        batch: The batch.
        laid_out: The same as inputs.
        channels: C' of the features.
        dtype: Of the features.

    Returns:
        [N, C', h, w], filled where the batch has features; the rows of each picture in it.
    """
    rows_of_picture = rows_of_each(laid_out.arrays["picture_of_row"].astype(np.int64))
    room = np.zeros((len(laid_out.order), channels, *batch.state.shape[-2:]), dtype)
    for rows, given in zip(rows_of_picture, batch.features, strict=False):
        room[rows] = given
    return room, rows_of_picture


def _sort_rows(ref_of_row: IntArray) -> tuple[IntArray, IntArray]:
    """Order of the rows, plain ones first, and the references of those that read any.

    Returns:
        int64 [N], sorted position -> row; int64 [Nr, R], a row's references first, then -1.
    """
    counts = (ref_of_row >= 0).sum(axis=1) if ref_of_row.size else np.zeros(len(ref_of_row), int)
    order = np.argsort(counts > 0, kind="stable").astype(np.int64)
    slots = max(1, int(counts.max(initial=0)))
    reading = order[np.count_nonzero(counts == 0) :]
    packed = np.full((len(reading), slots), -1, dtype=np.int64)
    for number, row in enumerate(reading):
        packed[number, : counts[row]] = ref_of_row[row][ref_of_row[row] >= 0]
    return order, packed


def _pairs(pictures: IntArray, ref_rows: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct pairs of a picture and what is read beside it, in the order of the sorted rows.

    Returns:
        int64 [U], the first row of each pair; int64 [N], the pair of each row.
    """
    plain = [()] * (len(pictures) - len(ref_rows))
    rows = list(zip(pictures.tolist(), [*plain, *map(tuple, ref_rows.tolist())], strict=True))
    pairs = list(dict.fromkeys(rows))
    return (
        np.array([rows.index(pair) for pair in pairs], dtype=np.int64),
        np.array([pairs.index(row) for row in rows], dtype=np.int64),
    )


def _flat_references(
    refs: IntArray, batch: DenoiseBatch, entries: Sequence[int], table_of_slot: Sequence[int]
) -> IntArray:
    """References counted through [Nr, R] -> indices into the flat table [T, Nr, R]."""
    steps = len(batch.solver.timesteps)
    index_of_step = np.full((steps, sum(batch.num_references) + 1), -1, dtype=np.int64)
    references = dict(zip(table_of_slot, batch.num_references, strict=True))
    passes = [references[table] * count for table, count in enumerate(entries)]
    starts = [sum(passes[:table]) for table in range(len(passes))]
    column = 0
    for number, (count, table) in enumerate(zip(batch.num_references, table_of_slot, strict=True)):
        entry, available, start = batch.entry_of_step[number], entries[table], starts[table]
        if entry.min(initial=0) < 0 or entry.max(initial=0) >= available:
            raise ParameterError(
                f"a step reads entry {int(entry.max(initial=0))} of a reference table, which has "
                f"{available}; encode the subject for this schedule"
            )
        index_of_step[:, column : column + count] = (
            start + entry[:, None] * count + np.arange(count)
        )
        column += count
    return np.ascontiguousarray(index_of_step[:, refs])  # -1 finds the last column, which is -1
