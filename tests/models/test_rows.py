"""Sorting and grouping of rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.models.rows import bucketed_rows, plain_rows, plan_rows

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


def test_a_plan_of_plain_rows_holds_all_of_them() -> None:
    plan = plain_rows(3)
    assert [group.rows for group in plan.groups] == [slice(0, 3)]
    assert (plan.num_rows, plan.first_of_several, plan.uses_references) == (3, 3, False)


def test_rows_in_buckets_read_what_the_device_says_and_know_their_gaps() -> None:
    refs = torch.tensor([[-1, -1], [3, -1], [2, -1], [-1, -1], [1, 0]], dtype=torch.int32)
    shared = plan_rows(torch.tensor([[1]]), 4, torch.tensor([0])).shared
    plan = bucketed_rows([(0, 1), (1, 1), (2, 3)], refs, shared)
    assert [group.rows for group in plan.groups] == [slice(0, 1), slice(1, 2), slice(2, 5)]
    assert [group.num_references for group in plan.groups] == [0, 1, 2]
    table = torch.arange(4.0).reshape(4, 1, 1, 1)
    for group in plan.groups[1:]:
        found = group.select(table).flatten(1).to(torch.int32)
        wanted = refs[group.rows, : group.num_references]
        assert group.present is not None
        assert torch.equal(group.present, wanted >= 0)
        assert torch.equal(found[group.present], wanted[wanted >= 0])
    assert (plan.num_rows, plan.first_of_several, plan.uses_references) == (5, 2, True)
    assert plan.ref_of_row is refs
    assert plan.shared is shared is not None
    assert bucketed_rows([(0, 5)], refs).ref_of_row is None
