"""The arithmetic of the floor."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch.nn.functional import scaled_dot_product_attention

from bootpig_rt.benchmarks.bare_unet import flops_of


def test_attention_is_counted_on_a_cpu() -> None:
    rows, heads, tokens, keys, size = 2, 3, 64, 48, 16
    q = torch.randn(rows, heads, tokens, size)
    k = torch.randn(rows, heads, keys, size)
    # Two products, q k^T and p v, each a multiplication and an addition for each of N x S x D.
    expected = 2 * 2 * rows * heads * tokens * keys * size
    assert flops_of(lambda: scaled_dot_product_attention(q, k, k)) == expected


@pytest.mark.parametrize("tokens", [16, 64])
def test_an_attention_module_is_its_projections_and_its_two_products(tokens: int) -> None:
    rows, width = 3, 32
    module = Attention(query_dim=width, heads=2, dim_head=16)
    projections = 4 * 2 * rows * tokens * width * width
    products = 2 * 2 * rows * tokens * tokens * width
    states = torch.randn(rows, tokens, width)
    assert flops_of(lambda: module(states)) == projections + products
