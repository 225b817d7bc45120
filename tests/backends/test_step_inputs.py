"""What a step reads: each row its own text, picture and references, wherever it came to lie."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.base import BatchCanvas, DenoiseBatch
from bootpig_rt.backends.step_inputs import (
    NO_LIMIT,
    StepInputs,
    graph_name,
    room_for_features,
    rows_of_each,
    step_inputs,
)
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.errors import ParameterError

STEPS = 3


def solver(pictures: int, *, history: int = 0, clip: float | None = None) -> BatchSolver:
    size = 1 + history
    return BatchSolver(
        timesteps=np.arange(STEPS * pictures).reshape(STEPS, pictures),
        matrices=np.zeros((STEPS, pictures, size, size + 1), np.float32),
        x0=np.zeros((STEPS, pictures, 2), np.float32),
        clip_weight=np.zeros((STEPS, pictures), np.float32),
        clip_sample_range=clip,
    )


def mixed(seed: int) -> DenoiseBatch:
    """Pictures with and without references, of tables that they may share, in any order."""
    draw = random.Random(seed)
    kept: list[Any] = [
        SimpleNamespace(entries=draw.randint(1, 4), references=draw.randint(1, 3)) for _ in range(3)
    ]
    tables = [draw.choice(kept) for _ in range(draw.randint(0, 4))]
    first = 0
    slots: list[tuple[int, ...]] = [()]  # what a row may read: nothing, or references of a table
    for table in tables:
        slots.append(tuple(range(first, first + table.references)))
        first += table.references
    pictures = draw.randint(1, 4)
    rows = [(picture, draw.choice(slots)) for picture in range(pictures) for _ in range(2)]
    draw.shuffle(rows)
    width = 1 + max(len(references) for _, references in rows)
    ref_of_row = np.full((len(rows), width), -1)
    for number, (_, references) in enumerate(rows):
        for column, reference in zip(
            sorted(draw.sample(range(width), len(references))), references, strict=True
        ):
            ref_of_row[number, column] = reference
    of_picture = [[n for n, row in enumerate(rows) if row[0] == b] for b in range(pictures)]
    return DenoiseBatch(
        state=np.full((1, pictures, 4, 2, 3), 7, np.float32),
        prompt_embeds=np.zeros((9, 1, 1), np.float32),
        text_of_row=np.array([draw.randrange(9) for _ in rows]),
        picture_of_row=np.array([picture for picture, _ in rows]),
        ref_of_row=ref_of_row,
        rows_of_picture=np.array([[draw.choice(own) for own in of_picture] for _ in range(3)]),
        image_guidance_scale=np.arange(pictures, dtype=np.float32),
        text_guidance_scale=-np.arange(pictures, dtype=np.float32),
        tables=tuple(tables),
        num_references=tuple(table.references for table in tables),
        entry_of_step=np.array(
            [[draw.randrange(table.entries) for _ in range(STEPS)] for table in tables], int
        ).reshape(len(tables), STEPS),
        solver=solver(pictures),
        merge="argmax",
    )


def read(batch: DenoiseBatch, row: int, step: int, *, streams: bool) -> list[tuple[int, int, int]]:
    """What a row of the batch reads: table, entry, reference; of a stream its place for a table."""
    slots = [
        (slot, reference)
        for slot, count in enumerate(batch.num_references)
        for reference in range(count)
    ]
    found = []
    for reference in batch.ref_of_row[row]:
        if reference >= 0:
            slot, of_slot = slots[reference]
            entry = int(batch.entry_of_step[slot, step])
            found.append(
                (slot, 0, of_slot) if streams else (id(batch.tables[slot]), entry, of_slot)
            )
    return found


def lying(inputs: StepInputs, *, streams: bool) -> list[tuple[int, int, int]]:
    """What lies at each place of the flat table."""
    return [
        (slot, 0, reference) if streams else (id(table), entry, reference)
        for slot, table in enumerate(inputs.tables)
        for entry in range(1 if streams else table.entries)
        for reference in range(table.references)
    ]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_each_row_reads_what_its_batch_says(seed: int, streams: bool) -> None:
    batch = mixed(seed)
    inputs = step_inputs(batch, streams=streams)
    arrays, places = inputs.arrays, lying(inputs, streams=streams)
    if not streams:
        assert len({id(table) for table in inputs.tables}) == len(inputs.tables)
    assert sorted(inputs.order) == list(range(len(batch.picture_of_row)))
    plain = [int((batch.ref_of_row[row] >= 0).sum()) == 0 for row in inputs.order]
    num_plain = sum(plain)
    assert plain == [True] * num_plain + [False] * (len(plain) - num_plain)
    flat, of_pair = arrays["ref_of_row"], arrays["ref_of_pair"]
    assert flat.shape == (STEPS, len(plain) - num_plain, inputs.slots)
    assert inputs.slots == max(1, (batch.ref_of_row >= 0).sum(axis=1).max())
    assert inputs.num_steps == STEPS
    np.testing.assert_array_equal(inputs.text_of_row, batch.text_of_row[inputs.order])
    np.testing.assert_array_equal(arrays["picture_of_row"], batch.picture_of_row[inputs.order])
    np.testing.assert_array_equal(inputs.order[arrays["rows_of_picture"]], batch.rows_of_picture)
    seen: dict[int, Any] = {}
    num_plain_pairs = len(arrays["picture_of_pair"]) - of_pair.shape[1]
    for place, row in enumerate(inputs.order):
        pair = int(arrays["pair_of_row"][place])
        assert arrays["picture_of_pair"][pair] == batch.picture_of_row[row]
        whole = []
        for step in range(STEPS):
            wanted = read(batch, row, step, streams=streams)
            if wanted:
                filled = flat[step, place - num_plain]
                assert [places[index] for index in filled if index >= 0] == wanted
                assert (filled[len(wanted) :] == -1).all()
                np.testing.assert_array_equal(of_pair[step, pair - num_plain_pairs], filled)
            whole.append(wanted)
        read_by = batch.picture_of_row[row], batch.ref_of_row[row][batch.ref_of_row[row] >= 0]
        assert seen.setdefault(pair, str((read_by, whole))) == str((read_by, whole))
    assert len(set(seen.values())) == len(seen) == len(arrays["picture_of_pair"])


def test_a_batch_of_plain_rows_reads_no_table() -> None:
    batch = replace(
        mixed(0), ref_of_row=np.full_like(mixed(0).ref_of_row, -1), tables=(), num_references=()
    )
    inputs = step_inputs(replace(batch, entry_of_step=np.zeros((0, STEPS), np.int64)))
    assert inputs.arrays["ref_of_row"].shape == (STEPS, 0, 1)
    assert (inputs.slots, inputs.tables) == (1, [])


@pytest.mark.parametrize(("entry", "is_there"), [(-1, False), (0, True), (2, True), (3, False)])
def test_an_entry_that_a_table_lacks_is_refused(entry: int, is_there: bool) -> None:
    batch = replace(
        mixed(0),
        tables=(SimpleNamespace(entries=3, references=1),),
        num_references=(1,),
        ref_of_row=np.zeros((len(mixed(0).picture_of_row), 1), np.int64),
        entry_of_step=np.array([[1, entry, 1]]),
    )
    if is_there:
        assert step_inputs(batch).arrays["ref_of_row"][:, 0, 0].tolist() == [1, entry, 1]
    else:
        with pytest.raises(ParameterError, match=r"of a reference table, which has 3; encode"):
            step_inputs(batch)


def test_the_state_has_room_for_the_history_and_a_solver_that_clamps_nothing_no_limit() -> None:
    batch = replace(mixed(3), solver=solver(len(mixed(3).image_guidance_scale), history=2))
    arrays = step_inputs(batch).arrays
    assert arrays["state"].shape == (3, *batch.state.shape[1:])
    assert (arrays["state"][0] == 7).all()
    assert (arrays["state"][1:] == 0).all()
    assert arrays["clip_range"].tolist() == [np.float32(NO_LIMIT)]
    clamped = replace(batch, solver=replace(batch.solver, clip_sample_range=1.5))
    assert step_inputs(clamped).arrays["clip_range"].tolist() == [1.5]
    for name in ("timesteps", "matrices", "x0", "clip_weight"):
        assert arrays[name] is getattr(batch.solver, name)
    for name in ("image_guidance_scale", "text_guidance_scale"):
        assert arrays[name] is getattr(batch, name)


def test_a_batch_without_a_canvas_is_given_one_that_changes_nothing() -> None:
    batch = mixed(5)
    count = batch.state.shape[1]
    arrays = step_inputs(batch).arrays
    assert arrays["mask"].shape == (count, 1, 2, 3)
    assert (arrays["mask"] == 1).all()
    assert arrays["canvas"].shape == (3, count, 4, 2, 3)
    assert arrays["canvas_weights"].shape == (STEPS, count, 2)
    assert not arrays["canvas"].any()
    assert not arrays["canvas_weights"].any()
    assert {arrays[name].dtype for name in ("mask", "canvas", "canvas_weights")} == {
        np.dtype(np.float32)
    }
    given = BatchCanvas(*(np.full(3, number, np.float32) for number in range(3)))
    arrays = step_inputs(replace(batch, canvas=given)).arrays
    assert arrays["canvas"] is given.latents
    assert arrays["canvas_weights"] is given.weights
    assert arrays["mask"] is given.mask


def test_features_lie_where_the_rows_of_their_picture_do() -> None:
    batch = mixed(7)
    laid_out = step_inputs(batch)
    lies = laid_out.arrays["picture_of_row"].astype(np.int64)
    count = batch.state.shape[1]
    rows = [int((lies == b).sum()) for b in range(count)]
    features = tuple(np.full((rows[b], 5, 2, 3), 1 + b, np.float16) for b in range(count))
    room, found = room_for_features(
        replace(batch, features=features), laid_out, channels=5, dtype=np.float16
    )
    assert room.dtype == np.float16
    np.testing.assert_array_equal(room, (1 + lies)[:, None, None, None] * np.ones((1, 5, 2, 3)))
    for b, (one, other) in enumerate(zip(found, rows_of_each(lies), strict=True)):
        assert one.tolist() == other.tolist() == [n for n, p in enumerate(lies) if p == b]
    empty, _ = room_for_features(batch, laid_out, channels=5, dtype=np.float16)
    assert empty.shape == (len(lies), 5, 2, 3)
    assert not empty.any()


def test_the_graph_is_named_by_how_references_are_combined_where_there_are_several() -> None:
    assert graph_name("mean", 1) == "denoise_step"
    assert graph_name("mean", 2) == "denoise_step_mean"
    assert graph_name("concat", 1, is_deep=False) == "shallow_step"
    assert graph_name("concat", 3, is_deep=False) == "shallow_step_concat"
