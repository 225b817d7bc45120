"""Rows of one picture are computed once until they meet their text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.errors import ParameterError
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

# Two pictures of three rows each, of different users and in an unsorted batch.
PICTURES = torch.tensor([1, 0, 0, 1, 0, 1])
REFS = torch.tensor([[0, 2], [-1, -1], [1, -1], [-1, -1], [1, -1], [0, 2]])


@pytest.mark.parametrize("merge", ["argmax", "softmax", "mean", "concat"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_one_sample_a_picture_equals_one_a_row(make_unet: Any, merge: Merge, blocks: int) -> None:
    base = BaseUNet(make_unet(transformer_layers_per_block=blocks).double())
    reference = ReferenceUNet(make_unet(1, transformer_layers_per_block=blocks).double())
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([700, 20])
    text = torch.randn(6, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        features = reference(
            torch.randn(3, 4, 8, 8, dtype=torch.float64),
            torch.tensor([1, 2, 3]),
            torch.randn(3, 5, 12, dtype=torch.float64),
        )
        table = base.project_reference(features)
        expected = base(latents[PICTURES], t[PICTURES], text, table, REFS, merge=merge)
        plan = plan_rows(REFS, 3, PICTURES)
        found = base(latents, t, text, table, plan, merge=merge)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_first_layers_run_once_a_picture(make_unet: Any) -> None:
    base = BaseUNet(make_unet())
    seen: list[int] = []
    first = base.unet.down_blocks[0].resnets[0]
    first.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    table = tuple(
        (torch.zeros(3, heads, 4, width // heads), torch.zeros(3, heads, 4, width // heads))
        for _, heads, width in base.layer_shapes()
    )
    attended: list[int] = []
    first_attention = base.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    first_attention.to_out[0].register_forward_hook(
        lambda module, inputs, output: attended.append(len(output))
    )
    plan = plan_rows(REFS, 3, PICTURES)
    assert plan.shared is not None
    assert plan.shared.plan.num_rows == 4  # per picture: with its references, and without
    with torch.no_grad():
        base(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(6, 5, 12), table, plan)
    assert seen == [2]
    assert attended == [4]  # of six rows


def test_a_picture_for_every_row_is_asked_for() -> None:
    with pytest.raises(ParameterError, match="picture_of_row has 5 rows but ref_of_row 6"):
        plan_rows(REFS, 3, PICTURES[:5])
