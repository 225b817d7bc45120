"""Which reference each row of a batch reads: sorted once per forward, so that layers only slice.

Rows that read the same number of references form one group, and groups are contiguous slices of
the sorted batch. No row pays for a mask, and a row without a reference runs plain self-attention.
This file knows nothing about attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bootpig_rt.errors import ParameterError


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring rows of the sorted batch that read the same number of references.

    Attributes:
        rows: Slice of the sorted batch.
        num_references: R, references that each of these rows reads; 0 is plain self-attention.
        index: Where the references lie in the table, a slice or int64 indices: `R` entries that
            all rows share (`shared`), or `rows * R` entries in row order.
        shared: All rows read the same R references.
        present: bool [rows, R], which of the slots hold a reference, none of a row or all of it
            perhaps; None: all do.
    """

    rows: slice
    num_references: int
    index: slice | Tensor | None = None
    shared: bool = False
    present: Tensor | None = None

    def select(self, table: Tensor) -> Tensor:
        """Reference keys or values of these rows.

        Args:
            table: [N, H, M, D].

        Returns:
            [rows, R, H, M, D], a view of the table where the references are neighbours in it.
        """
        if self.index is None:
            raise ParameterError("this group of rows reads no reference")
        if isinstance(self.index, slice):
            picked = table[self.index]
        else:
            picked = table.index_select(0, self.index)
        if self.shared:
            num_rows = self.rows.stop - self.rows.start
            return picked.unsqueeze(0).expand(num_rows, -1, -1, -1, -1)
        by_row: Tensor = picked.unflatten(0, (-1, self.num_references))
        return by_row


@dataclass(frozen=True)
class SharedRows:
    """Rows of one picture are alike until they meet their text: what to compute once.

    Attributes:
        plan: Of the U distinct pairs of a picture and what is read beside it.
        picture_of_pair: int64 [U], in the order of `plan`.
        pair_of_row: int64 [B], for the sorted rows.
        picture_of_row: int64 [B], for the sorted rows.
    """

    plan: RowPlan
    picture_of_pair: Tensor
    pair_of_row: Tensor
    picture_of_row: Tensor


@dataclass(frozen=True)
class RowPlan:
    """How one batch is sorted and grouped by its references. Build it with `plan_rows`.

    Attributes:
        groups: Groups in the order of the sorted batch, by rising number of references.
        order: int64 [B], sorted position -> row of the caller; None where the rows are in order.
        inverse: int64 [B], row of the caller -> sorted position; None likewise.
        ref_of_row: int32 [B, S], what each sorted row reads, -1 after its last; for kernels that
            follow indices on the device. None where no row reads a reference.
        shared: What rows of one picture have in common, where the pictures are known.
    """

    groups: tuple[RowGroup, ...]
    order: Tensor | None = None
    inverse: Tensor | None = None
    ref_of_row: Tensor | None = None
    shared: SharedRows | None = None

    @property
    def first_of_several(self) -> int:
        """The first sorted row that reads more than one reference; B where there is none."""
        several = (group.rows.start for group in self.groups if group.num_references > 1)
        return int(min(several, default=self.num_rows))

    @property
    def num_rows(self) -> int:
        """B, rows of the batch."""
        return int(self.groups[-1].rows.stop)

    @property
    def uses_references(self) -> bool:
        """At least one row reads a reference."""
        return any(group.num_references for group in self.groups)

    def sort(self, tensor: Tensor) -> Tensor:
        """Rows of the caller [B, ...] in the order of the groups."""
        return tensor if self.order is None else tensor.index_select(0, self.order)

    def restore(self, tensor: Tensor) -> Tensor:
        """Rows in the order of the groups [B, ...] back in the caller's."""
        return tensor if self.inverse is None else tensor.index_select(0, self.inverse)


def plan_rows(
    ref_of_row: Tensor,
    num_references: int,
    picture_of_row: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
) -> RowPlan:
    """Sort and group the rows of a batch by what they read.

    Reads the values of `ref_of_row` on the host. Where that matters (a loop over steps on a GPU,
    tracing for export) build the plan once and pass it in place of the tensor.

    Args:
        ref_of_row: int64 [B, R], indices into the reference table, -1 for none.
        num_references: N, references in the table.
        picture_of_row: int64 [B], where rows show the same picture; `BaseUNet` then takes one
            sample a picture in place of one a row. None: every row is a picture of its own.
        device: Where the plan's tensors go; by default where `ref_of_row` lies. Give host tensors
            and the device, and planning does not wait for what the device is doing.

    Raises:
        ParameterError: Wrong shape or type, or an index outside -1..N-1.
    """
    if ref_of_row.dim() != 2 or ref_of_row.dtype != torch.int64 or ref_of_row.shape[0] == 0:
        raise ParameterError(
            f"ref_of_row is {ref_of_row.dtype} of shape {list(ref_of_row.shape)}, expected int64 "
            "[B, R] with at least one row; use -1 where a row has no reference"
        )
    rows: list[list[int]] = [[ref for ref in row if ref != -1] for row in ref_of_row.tolist()]
    low = min((ref for row in rows for ref in row), default=0)
    high = max((ref for row in rows for ref in row), default=0)
    if low < 0 or (high >= num_references and any(rows)):
        raise ParameterError(
            f"ref_of_row names reference {low if low < 0 else high}, expected -1 (none) or "
            f"0..{num_references - 1}: the table holds {num_references}"
        )
    device = ref_of_row.device if device is None else torch.device(device)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    groups: list[RowGroup] = []
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order) and len(rows[order[stop]]) == len(rows[order[start]]):
            continue
        refs = [rows[row] for row in order[start:stop]]
        groups.append(_group(slice(start, stop), refs, device))
        start = stop
    slots = max(map(len, rows))
    table = None
    if slots:
        filled = [rows[row] + [-1] * (slots - len(rows[row])) for row in order]
        table = torch.tensor(filled, dtype=torch.int32, device=device)
    shared = None
    if picture_of_row is not None:
        shared = _shared(rows, picture_of_row, order, num_references, device)
    if order == list(range(len(rows))):
        return RowPlan(tuple(groups), ref_of_row=table, shared=shared)
    inverse = [0] * len(order)
    for position, row in enumerate(order):
        inverse[row] = position
    return RowPlan(
        tuple(groups),
        torch.tensor(order, device=device),
        torch.tensor(inverse, device=device),
        table,
        shared,
    )


def bucketed_rows(
    kinds: Sequence[tuple[int, int]], refs: Tensor, shared: SharedRows | None = None
) -> RowPlan:
    """The plan of rows that are sorted already, and whose references are data of the device.

    Args:
        kinds: (R, rows) of each group, by rising R.
        refs: int32 [B, S], what each row reads, -1 for none. A row may have fewer than R.
        shared: What rows of one picture have in common.
    """
    groups: list[RowGroup] = []
    start = 0
    for num_references, count in kinds:
        rows = slice(start, start + count)
        start += count
        if num_references == 0:
            groups.append(RowGroup(rows, 0))
            continue
        of_rows = refs[rows, :num_references]
        index = of_rows.clamp(min=0).flatten().long()
        groups.append(RowGroup(rows, num_references, index, present=of_rows >= 0))
    reads = any(num_references for num_references, _ in kinds)
    return RowPlan(tuple(groups), ref_of_row=refs if reads else None, shared=shared)


def plain_rows(num_rows: int) -> RowPlan:
    """The plan of a batch in which no row reads a reference."""
    return RowPlan((RowGroup(slice(0, num_rows), 0),))


def _shared(
    rows: list[list[int]],
    picture_of_row: Tensor,
    order: list[int],
    num_references: int,
    device: torch.device,
) -> SharedRows:
    """The distinct (picture, references) of the rows; `order` is that of the sorted rows."""
    pictures: list[int] = picture_of_row.tolist()
    if len(pictures) != len(rows):
        raise ParameterError(
            f"picture_of_row has {len(pictures)} rows but ref_of_row {len(rows)}, expected one "
            "picture a row"
        )
    wanted = [(pictures[row], tuple(rows[row])) for row in order]
    pairs = sorted(dict.fromkeys(wanted), key=lambda pair: len(pair[1]))  # as a plan sorts them
    slots = max(1, *(len(refs) for _, refs in pairs))
    filled = [[*refs, *[-1] * (slots - len(refs))] for _, refs in pairs]
    plan = plan_rows(torch.tensor(filled), num_references, device=device)
    return SharedRows(
        plan,
        torch.tensor([picture for picture, _ in pairs], device=device),
        torch.tensor([pairs.index(pair) for pair in wanted], device=device),
        torch.tensor([picture for picture, _ in wanted], device=device),
    )


def _group(rows: slice, refs: list[list[int]], device: torch.device) -> RowGroup:
    num_references = len(refs[0])
    if num_references == 0:
        return RowGroup(rows, 0)
    shared = all(row == refs[0] for row in refs)
    flat = refs[0] if shared else [ref for row in refs for ref in row]
    neighbours = flat == list(range(flat[0], flat[0] + len(flat)))
    index = slice(flat[0], flat[-1] + 1) if neighbours else torch.tensor(flat, device=device)
    return RowGroup(rows, num_references, index, shared)
