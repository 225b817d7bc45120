"""A whole table with the entry of the step on the device, against the entry alone."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.models import attention
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers

ENTRIES, REFERENCES = 4, 3
REFS = torch.tensor([[-1, -1], [1, -1], [0, 2]])


def table_of(base: BaseUNet) -> ReferenceKVLayers:
    torch.manual_seed(1)
    return tuple(
        (
            torch.randn(ENTRIES, REFERENCES, heads, 9, width // heads),
            torch.randn(ENTRIES, REFERENCES, heads, 9, width // heads),
        )
        for _, heads, width in base.layer_shapes()
    )


@pytest.mark.parametrize("merge", get_args(Merge))
def test_the_entry_of_a_whole_table_equals_the_entry_alone(make_unet: Any, merge: Merge) -> None:
    base = BaseUNet(make_unet())
    table = table_of(base)
    torch.manual_seed(0)
    latents, text = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 12)
    plan = plan_rows(REFS, REFERENCES)
    entry = torch.zeros(1, dtype=torch.int32)
    drawn = []
    for index in range(ENTRIES):
        entry.fill_(index)
        alone = tuple((k[index], v[index]) for k, v in table)
        with torch.inference_mode():
            whole = base(
                latents, torch.full((3,), 500), text, table, plan, merge=merge, entry=entry
            )
            one = base(latents, torch.full((3,), 500), text, alone, plan, merge=merge)
        assert torch.equal(whole, one)
        drawn.append(whole)
    assert not torch.equal(drawn[0], drawn[1])


def test_indices_are_checked_against_the_references_and_not_the_entries(make_unet: Any) -> None:
    base = BaseUNet(make_unet())
    entry = torch.zeros(1, dtype=torch.int32)
    rows = torch.tensor([[REFERENCES - 1]])
    with torch.inference_mode():
        found = base(
            torch.zeros(1, 4, 8, 8),
            torch.zeros(1),
            torch.zeros(1, 5, 12),
            table_of(base),
            rows,
            entry=entry,
        )
    assert found.shape == (1, 4, 8, 8)


def test_away_from_the_cpu_no_index_is_read_on_the_host() -> None:
    """On the meta device `int(entry)` is an error, as it is while a graph is captured."""
    table = (torch.empty(4, 3, 2, 9, 8, device="meta"), torch.empty(4, 3, 2, 9, 8, device="meta"))
    keys, values = attention._entry_of(table, torch.empty(1, dtype=torch.int32, device="meta"))
    assert keys.shape == values.shape == (3, 2, 9, 8)
