"""Products that were joined give what the small ones give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bootpig_rt import Pipeline, Request, TorchOptions
from bootpig_rt.models.attention import project_own
from bootpig_rt.models.blocks import time_offset
from bootpig_rt.models.joined import join_products
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.operations import Kind, list_operations


@pytest.fixture
def pair(tiny_pair_folder: Path) -> Pair:
    """One that may be changed."""
    return load_pair(tiny_pair_folder)


def modules(pair: Pair, kind: Kind) -> list[object]:
    return [op.module for op in list_operations(pair.base.unet) if op.kind is kind]


def test_joined_projections_are_those_of_the_three_layers(pair: Pair) -> None:
    (transformer, *_) = modules(pair, Kind.TRANSFORMER)
    attn = transformer.transformer_blocks[0].attn1  # type: ignore[attr-defined]
    tokens = torch.randn(2, 9, attn.to_q.in_features)
    before = project_own(attn, tokens)
    join_products(pair.base.unet)
    for mine, theirs in zip(project_own(attn, tokens), before, strict=True):
        torch.testing.assert_close(mine, theirs)
    # Nothing is stored twice.
    weight, _ = attn.joined_projections
    assert attn.to_q.weight.data_ptr() == weight.data_ptr()


def test_one_product_of_time_embeddings_serves_all_blocks_and_each_timestep(pair: Pair) -> None:
    blocks = modules(pair, Kind.RESNET)
    width = blocks[0].time_emb_proj.in_features  # type: ignore[attr-defined]
    times = [torch.randn(2, width) for _ in range(2)]
    before = [[time_offset(block, temb) for block in blocks] for temb in times]
    join_products(pair.base.unet)
    for temb, expected in zip(times, before, strict=True):
        for block, theirs in zip(blocks, expected, strict=True):
            torch.testing.assert_close(time_offset(block, temb), theirs)


def test_a_pipeline_with_joined_products_draws_the_same_picture(tiny_pair_folder: Path) -> None:
    drawn = []
    for joined in (False, True):
        with Pipeline(
            tiny_pair_folder, backend=TorchOptions(joined_products=joined), device="cpu"
        ) as pipe:
            request = Request(prompt="a photo of a dog", num_inference_steps=2, seed=3)
            result = pipe.generate([request])
            drawn.append(np.asarray(result.images[0], dtype=np.int64))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
