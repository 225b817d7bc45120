"""Rows of a batch in sizes that few recordings serve: what each row reads is data, not shape.

Pictures, rows, references and slots are rounded up. A row that is added is a copy of the first of
its kind, and nobody reads what comes of it. Rows that read at most one reference come first, then
those that read several. Finer sizes would waste less and be recorded more often: with these, a
stream of any subjects, steps and guidance needs 15 recordings where subjects have one reference,
and rows grow by a seventh. numpy only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.base import DenoiseBatch, IntArray

T = TypeVar("T")

_SIZES = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_SIZES_OF_SEVERAL = (0, 4, 8, 16, 24, 32, 48, 64)
_POWERS = (0, 1, 2, 4, 8, 16, 32, 64)
_ROOM_FOR_REFERENCES = (0, 4, 16, 64)

RefArray = npt.NDArray[np.int32]

Kinds = tuple[tuple[int, int], ...]
"""(slots for references, rows) of each kind of row, in order."""


def bucket(count: int, sizes: Sequence[int] = _SIZES) -> int:
    """The least of some sizes that holds a number of things; multiples of 32 above the last."""
    largest = sizes[-1]
    if count > largest:
        return -(-count // 32) * 32
    return next(size for size in sizes if size >= count)


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a batch, rounded up.

    Attributes:
        pictures: B', of which the first B are the batch's.
        references: Room for those of all tables; 0 where no row reads any.
        kinds: Of the N' rows. The first has 1 slot, or 0 where no row reads any.
        kinds_of_pairs: Of the U' pairs of a picture and what is read beside it.
        text_of_row: int64 [N'].
        picture_of_row: int64 [N'].
        rows_of_picture: int64 [3, B'].
        refs: int32 [N', R'], what each row reads, -1 for none.
        pair_of_row: int64 [N'].
        picture_of_pair: int64 [U'].
        refs_of_pair: int32 [U', R'].
        place: int64 [N], where each of the batch's rows lies.
    """

    pictures: int
    references: int
    kinds: Kinds
    kinds_of_pairs: Kinds
    text_of_row: IntArray
    picture_of_row: IntArray
    rows_of_picture: IntArray
    refs: RefArray
    pair_of_row: IntArray
    picture_of_pair: IntArray
    refs_of_pair: RefArray
    place: IntArray

    @property
    def key(self) -> Hashable:
        """Equal for batches that one recording serves; `references` is for buffers to tell."""
        return self.pictures, self.kinds, self.kinds_of_pairs


def lay_out(batch: DenoiseBatch) -> Layout:
    """Sort and round up the rows of a batch."""
    refs = [tuple(ref for ref in row if ref >= 0) for row in batch.ref_of_row.tolist()]
    most = max(map(len, refs))
    # One softmax over all tokens leaves out no slot: there rows go by their number of references.
    is_exact = batch.merge == "concat"
    kind_of_row = [max(1, len(row) if is_exact else min(len(row), 2)) for row in refs]
    slots = {
        kind: min(kind, most) if is_exact or kind == 1 else bucket(most, _POWERS)
        for kind in sorted(set(kind_of_row))
    }
    width = max(1, *slots.values())
    pictures = bucket(batch.state.shape[1], _POWERS)
    wanted = list(zip(batch.picture_of_row.tolist(), refs, strict=True))
    rows: list[int] = []
    pairs: list[tuple[int, tuple[int, ...]]] = []
    kinds: list[tuple[int, int]] = []
    kinds_of_pairs: list[tuple[int, int]] = []
    for kind, num_slots in slots.items():
        of_kind = [row for row, one in enumerate(kind_of_row) if one == kind]
        size = bucket(len(of_kind), _SIZES if kind == 1 else _SIZES_OF_SEVERAL)
        rows += _filled(of_kind, size)
        kinds.append((num_slots, size))
        of_pairs = list(dict.fromkeys(wanted[row] for row in of_kind))
        # The pipeline gives a picture two pairs at most: one that reads nothing, one that reads.
        most_pairs = min(size, 2 * pictures if kind == 1 else pictures)
        num_pairs = most_pairs if len(of_pairs) <= most_pairs else size
        pairs += _filled(of_pairs, num_pairs)
        kinds_of_pairs.append((num_slots, num_pairs))
    place = {row: rows.index(row) for row in range(len(refs))}
    rows_of_picture = np.zeros((3, pictures), np.int64)
    for branch, of_branch in enumerate(batch.rows_of_picture.tolist()):
        rows_of_picture[branch, : len(of_branch)] = [place[row] for row in of_branch]
    return Layout(
        pictures=pictures,
        references=bucket(sum(batch.num_references), _ROOM_FOR_REFERENCES) if most else 0,
        kinds=tuple(kinds),
        kinds_of_pairs=tuple(kinds_of_pairs),
        text_of_row=batch.text_of_row[rows],
        picture_of_row=batch.picture_of_row[rows],
        rows_of_picture=rows_of_picture,
        refs=_slots([refs[row] for row in rows], width),
        pair_of_row=np.array([pairs.index(wanted[row]) for row in rows], np.int64),
        picture_of_pair=np.array([picture for picture, _ in pairs], np.int64),
        refs_of_pair=_slots([row for _, row in pairs], width),
        place=np.array([place[row] for row in range(len(refs))], np.int64),
    )


def _filled(items: Sequence[T], size: int) -> list[T]:
    return [*items, *[items[0]] * (size - len(items))]


def _slots(refs: Sequence[tuple[int, ...]], width: int) -> RefArray:
    filled = np.full((len(refs), width), -1, np.int32)
    for row, of_row in enumerate(refs):
        filled[row, : len(of_row)] = of_row
    return filled
