"""Which pictures of a batch are launched together, and the batch that they make.

What a picture is launched with changes its last bits, for models of other shapes sum in another
order. So pictures of the usual shapes go in groups of a fixed size, one by one by default, and the
others share launches of free shapes. Which of the two follows from the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, IntArray


@dataclass(frozen=True)
class Part:
    """Pictures that are launched together.

    Attributes:
        pictures: Of the batch.
        is_fixed: By a model of fixed shapes.
    """

    pictures: tuple[int, ...]
    is_fixed: bool


def parts_of(
    batch: DenoiseBatch, *, sizes: tuple[int, ...], latent_size: tuple[int, int]
) -> list[Part]:
    """Cut a batch into launches.

    Args:
        batch: The batch.
        sizes: Numbers of pictures that have models of fixed shapes; empty: none have.
        latent_size: Height and width that pictures of fixed shapes have.

    Returns:
        Pictures with one reference or none, as many together as the largest of `sizes` that they
        fill; then what is left, with one reference and with several apart, whose graphs differ.
    """
    of_size = batch.state.shape[3:] == latent_size
    of_size = of_size and not batch.controls  # their graphs have models of free shapes alone
    alike: dict[tuple[int, int], list[int]] = {}
    rest: dict[bool, list[int]] = {}
    for picture in range(batch.state.shape[1]):
        refs = batch.ref_of_row[batch.picture_of_row == picture]
        counts = (refs >= 0).sum(axis=1) if refs.size else np.zeros(len(refs), int)
        has_several = bool(counts.max(initial=0) > 1)
        if of_size and sizes and not has_several:
            shape = (len(refs), int(np.count_nonzero(counts)))
            alike.setdefault(shape, []).append(picture)
        else:
            rest.setdefault(has_several, []).append(picture)
    parts = []
    for pictures in alike.values():
        while pictures:
            size = max((one for one in sizes if one <= len(pictures)), default=0)
            if not size:
                rest.setdefault(False, []).extend(pictures)
                break
            parts.append(Part(tuple(pictures[:size]), True))
            pictures = pictures[size:]
    return [*parts, *(Part(tuple(sorted(left)), False) for left in rest.values())]


def batch_of(batch: DenoiseBatch, pictures: Sequence[int]) -> DenoiseBatch:
    """Some pictures of a batch, with the tables that they read."""
    if tuple(pictures) == tuple(range(batch.state.shape[1])):
        return batch
    chosen = np.array(pictures)
    rows = np.flatnonzero(np.isin(batch.picture_of_row, chosen))
    place_of_row = np.full(len(batch.picture_of_row), -1, np.int64)
    place_of_row[rows] = np.arange(len(rows))
    place_of_picture = np.full(batch.state.shape[1], -1, np.int64)
    place_of_picture[chosen] = np.arange(len(chosen))
    refs, used = _renumbered(batch.ref_of_row[rows], batch.num_references)
    solver = batch.solver
    return replace(
        batch,
        state=batch.state[:, chosen],
        text_of_row=batch.text_of_row[rows],
        picture_of_row=place_of_picture[batch.picture_of_row[rows]],
        ref_of_row=refs,
        rows_of_picture=place_of_row[batch.rows_of_picture[:, chosen]],
        image_guidance_scale=batch.image_guidance_scale[chosen],
        text_guidance_scale=batch.text_guidance_scale[chosen],
        tables=tuple(batch.tables[table] for table in used),
        num_references=tuple(batch.num_references[table] for table in used),
        entry_of_step=batch.entry_of_step[used],
        features=tuple(batch.features[picture] for picture in pictures) if batch.features else (),
        solver=replace(
            solver,
            timesteps=solver.timesteps[:, chosen],
            matrices=solver.matrices[:, chosen],
            x0=solver.x0[:, chosen],
            clip_weight=solver.clip_weight[:, chosen],
        ),
        canvas=None if batch.canvas is None else batch.canvas.of(chosen),
        controls=tuple(control.of(chosen) for control in batch.controls),
    )


def _renumbered(refs: IntArray, counts: Sequence[int]) -> tuple[IntArray, list[int]]:
    """References counted through the tables that are read alone, and which tables those are."""
    table_of = np.repeat(np.arange(len(counts)), counts)
    used = sorted({int(table_of[ref]) for ref in refs[refs >= 0]})
    place = np.full(len(table_of) + 1, -1, np.int64)  # -1 finds the last, which is -1
    kept = np.flatnonzero(np.isin(table_of, used))
    place[kept] = np.arange(len(kept))
    return place[refs], used
