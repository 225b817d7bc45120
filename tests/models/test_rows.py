"""Sorting and grouping of rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.models.rows import plan_rows

ROWS = st.integers(0, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-1, 5), min_size=width, max_size=width), min_size=1, max_size=7
    )
)


@given(ROWS)
def test_each_row_finds_its_references_in_its_order(rows: list[list[int]]) -> None:
    plan = plan_rows(torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1), 6)
    table = torch.arange(6.0).reshape(6, 1, 1, 1)
    found: list[list[float]] = []
    for group in plan.groups:
        count = group.rows.stop - group.rows.start
        if group.num_references == 0:
            found += [[]] * count
        else:
            found += group.select(table).flatten(1).tolist()
    order = range(len(rows)) if plan.order is None else plan.order.tolist()
    assert [[float(ref) for ref in rows[row] if ref >= 0] for row in order] == found


@given(ROWS)
def test_restoring_undoes_sorting(rows: list[list[int]]) -> None:
    plan = plan_rows(torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1), 6)
    numbers = torch.arange(len(rows))
    assert torch.equal(plan.restore(plan.sort(numbers)), numbers)


def test_neighbouring_references_are_sliced_and_not_copied() -> None:
    table = torch.randn(4, 2, 3, 5)
    aligned = plan_rows(torch.tensor([[1], [2], [3]]), 4).groups[0]
    assert aligned.select(table).data_ptr() == table[1].data_ptr()
    shared = plan_rows(torch.tensor([[1, 2], [1, 2]]), 4).groups[0]
    picked = shared.select(table)
    assert picked.data_ptr() == table[1].data_ptr()
    assert picked.shape == (2, 2, 2, 3, 5)


def test_rows_in_order_are_not_sorted() -> None:
    plan = plan_rows(torch.tensor([[-1, -1], [0, -1], [1, 0]]), 2)
    assert plan.order is None
    assert [group.num_references for group in plan.groups] == [0, 1, 2]


def test_a_plan_made_on_the_host_lies_on_its_device() -> None:
    refs = torch.tensor([[3, 1], [-1, -1], [0, 2]])
    plan = plan_rows(refs, 4, torch.tensor([0, 1, 0]), device="meta")
    assert plan.shared is not None
    tensors = [plan.order, plan.inverse, plan.ref_of_row, plan.shared.pair_of_row]
    tensors += [plan.shared.picture_of_pair, plan.shared.picture_of_row]
    tensors += [group.index for group in plan.groups if isinstance(group.index, torch.Tensor)]
    assert len(tensors) >= 7
    for tensor in tensors:
        assert tensor is not None
        assert tensor.device.type == "meta"
    assert plan.ref_of_row is not None
    assert plan.ref_of_row.dtype == torch.int32
    assert plan_rows(torch.full((2, 1), -1), 4).ref_of_row is None
