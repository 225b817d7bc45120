"""Rows: what the launches of a batch read, laid out as a `DenoiseBatch`.

A picture is `uncond + s_image (image - uncond) + s_text (text_image - image)`, where

- `uncond` has the negative prompt and no reference,
- `image` has the negative prompt and the references,
- `text_image` has the prompt and the references.

Scales decide which of the three matter: with `s_image = 1` the uncond row cancels, with equal
scales the image row, with `s_text = 0` the text_image row. A row that cancels is not computed and
its place is taken by one that makes the formula give the same; nothing is approximated. Rows of one
picture with the same text and references are one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from bootpig_rt.backends.base import (
    BatchCanvas,
    BatchControl,
    BoolArray,
    DenoiseBatch,
    FloatArray,
    IntArray,
)
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.engine.text_states import Texts
from bootpig_rt.reference.reference_table import ReferenceTable

if TYPE_CHECKING:
    from bootpig_rt.bundle.pair_config import Merge
    from bootpig_rt.engine.batch import Picture

_UNCOND, _IMAGE, _TEXT_IMAGE = range(3)


@dataclass(frozen=True)
class PictureBranches:
    """What the branches of one picture read.

    Attributes:
        prompt: Index of the prompt's text states.
        negative_prompt: Index of the negative prompt's text states.
        references: Indices of its references; empty for a picture without a subject.
        image_guidance_scale: s_image.
        text_guidance_scale: s_text.
    """

    prompt: int
    negative_prompt: int
    references: tuple[int, ...]
    image_guidance_scale: float
    text_guidance_scale: float


@dataclass(frozen=True)
class GuidanceRows:
    """GuidanceRows of a batch of B pictures; the fields are those of `DenoiseBatch`.

    Attributes:
        text_of_row: int64 [N].
        picture_of_row: int64 [N].
        ref_of_row: int64 [N, R], -1 for none.
        rows_of_picture: int64 [3, B].
    """

    text_of_row: IntArray
    picture_of_row: IntArray
    ref_of_row: IntArray
    rows_of_picture: IntArray


def lay_out(
    pictures: Sequence[Picture], num_steps: int, texts: Texts, state: FloatArray
) -> DenoiseBatch:
    """Lay out the next steps of some pictures.

    Args:
        pictures: Of one size and one merge, none of them done; those that leave out deep blocks
            in the next steps do so in the same ones; all of them follow maps in the next steps, or
            none does.
        num_steps: T, steps in which no picture's rows change.
        texts: Among others those of the pictures' prompts, with their states.
        state: float32 [1 + K, B, C, h, w], of the pictures now.
    """
    names, prompt_embeds = texts
    # A table is one slot for all pictures that read the same entries at the same steps. Pictures of
    # one subject that are at different steps have a slot each; the table itself is shared.
    slots: dict[tuple[int, tuple[int, ...]], tuple[ReferenceTable, int]] = {}
    branches = []
    count = 0
    for picture in pictures:
        plan, table = picture.plan, picture.table
        references: tuple[int, ...] = ()
        entries = plan.entries[picture.step : picture.step + num_steps].tolist()
        if table is not None and entries[0] >= 0:
            slot = (id(table.data), tuple(entries))
            if slot not in slots:
                slots[slot] = (table, count)
                count += table.key.num_references
            first = slots[slot][1]
            references = tuple(range(first, first + table.key.num_references))
        wanted = plan.parameters
        prompt, negative_prompt = (
            names.index((text, wanted.sizes)) for text in (wanted.prompt, wanted.negative_prompt)
        )
        scales = plan.scales[picture.step].tolist()
        branches.append(PictureBranches(prompt, negative_prompt, references, *scales))
    rows = plan_guidance(branches)
    entry_of_step = np.array([entries for _, entries in slots], dtype=np.int64)
    deep_steps, canvas = _deep_steps(pictures, num_steps), _canvas(pictures, num_steps)
    reads = deep_steps is not None and not deep_steps[0]
    return DenoiseBatch(
        state=state,
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
        controls=_controls(pictures),
        solver=BatchSolver.of(
            [picture.plan.solver for picture in pictures],
            starts=[picture.step for picture in pictures],
            num_steps=num_steps,
        ),
        merge=cast("Merge", pictures[0].plan.parameters.merge),
        deep_steps=deep_steps,
        features=tuple(picture.features for picture in pictures) if reads else (),
        canvas=canvas,
    )


def _controls(pictures: Sequence[Picture]) -> tuple[BatchControl, ...]:
    """The maps that pictures follow in the next steps, by kind."""
    acting = [
        (b, plan.control)
        for b, picture in enumerate(pictures)
        for plan in picture.plan.controls
        if plan.acts[picture.step]
    ]
    made = []
    for kind in sorted({control.kind for _, control in acting}):
        of_kind = [(b, control) for b, control in acting if control.kind == kind]
        maps = list({id(control.for_net): control.for_net for _, control in of_kind}.values())
        place = {id(one): index for index, one in enumerate(maps)}
        map_of_picture = np.full(len(pictures), -1, np.int64)
        scale = np.zeros(len(pictures), np.float32)
        for b, control in of_kind:
            map_of_picture[b], scale[b] = place[id(control.for_net)], control.scale
        made.append(BatchControl(kind, tuple(maps), map_of_picture, scale))
    return tuple(made)


def _canvas(pictures: Sequence[Picture], num_steps: int) -> BatchCanvas | None:
    """What pictures are drawn into, side by side; None where none has anything."""
    if all(picture.canvas is None for picture in pictures):
        return None
    count, shape = len(pictures), pictures[0].plan.latents_shape
    latents = np.zeros((3, count, *shape), np.float32)
    weights = np.zeros((num_steps, count, 2), np.float32)
    mask = np.ones((count, 1, *shape[1:]), np.float32)
    for b, picture in enumerate(pictures):
        if picture.canvas is not None:
            latents[:, b], mask[b] = picture.canvas.latents, picture.canvas.mask
        if picture.plan.canvas is not None:
            weights[:, b] = picture.plan.canvas.weights[picture.step : picture.step + num_steps]
    return BatchCanvas(latents, weights, mask)


def _deep_steps(pictures: Sequence[Picture], num_steps: int) -> BoolArray | None:
    """Of pictures that are in step; None where none leaves out anything."""
    for picture in pictures:
        deep_steps = picture.plan.deep_steps
        if deep_steps is not None:
            return deep_steps[picture.step : picture.step + num_steps]
    return None


def plan_guidance(pictures: Sequence[PictureBranches]) -> GuidanceRows:
    """The rows of a batch, each computed once, those with the fewest references first."""
    rows: list[tuple[int, int, tuple[int, ...]]] = []  # picture, text, references
    branches: list[list[tuple[int, int, tuple[int, ...]]]] = []
    for number, picture in enumerate(pictures):
        found = (
            (number, picture.negative_prompt, ()),
            (number, picture.negative_prompt, picture.references),
            (number, picture.prompt, picture.references),
        )
        chosen = [found[branch] for branch in _stand_ins(picture)]
        branches.append(chosen)
        rows.extend(row for row in dict.fromkeys(chosen))
    rows.sort(key=lambda row: len(row[2]))
    position = {row: index for index, row in enumerate(rows)}
    width = max(1, *(len(references) for _, _, references in rows))
    ref_of_row = np.full((len(rows), width), -1, dtype=np.int64)
    for index, (_, _, references) in enumerate(rows):
        ref_of_row[index, : len(references)] = references
    return GuidanceRows(
        text_of_row=np.array([text for _, text, _ in rows], dtype=np.int64),
        picture_of_row=np.array([number for number, _, _ in rows], dtype=np.int64),
        ref_of_row=ref_of_row,
        rows_of_picture=np.array(
            [[position[chosen[branch]] for chosen in branches] for branch in range(3)],
            dtype=np.int64,
        ),
    )


def _stand_ins(picture: PictureBranches) -> tuple[int, int, int]:
    """For each branch, the branch that is computed in its place: itself where it matters."""
    s_image, s_text = picture.image_guidance_scale, picture.text_guidance_scale
    needs_uncond, needs_image, needs_text = s_image != 1.0, s_image != s_text, s_text != 0.0
    image = _IMAGE if needs_image else _UNCOND if needs_uncond else _TEXT_IMAGE
    uncond = _UNCOND if needs_uncond else image
    text_image = _TEXT_IMAGE if needs_text else image
    return uncond, image, text_image
