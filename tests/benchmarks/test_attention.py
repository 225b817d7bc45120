"""Ways to compute attention with references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bootpig_rt.benchmarks.attention import Layer, attention_ways, largest_error, make_layer
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Bench, Way

SHAPES = [(2, 16, 16), (2, 16, 16), (4, 4, 16)]


def ways(references: int = 1, pictures: int = 1) -> list[Way]:
    return attention_ways(
        "c", SHAPES, references=references, pictures=pictures, device="cpu", dtype=torch.float32
    )


@pytest.mark.parametrize(("references", "pictures"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_all_ways_that_run_here_give_the_same_numbers(references: int, pictures: int) -> None:
    bench = Bench(Settings(Path(), rounds=1))
    rows = bench.rows("t", ways(references, pictures), baseline="c published", warmups=0)
    ran = {row.name.removeprefix("c ") for row in rows if row.samples_ms}
    assert ran == {"published", "ours", "concat", "concat_flash", "merge_flash"}
    assert all(check.is_ok for check in bench.checks)
    assert len(bench.checks) == len(ran)


def test_stock_libraries_that_are_missing_say_so() -> None:
    rows = Bench(Settings(Path(), rounds=1)).rows("t", ways(), warmups=0)
    status = {row.name: row.status for row in rows}
    assert "the package flash_attn_interface is not installed" in status["c merge_fa3"]
    assert "the package xformers is not installed" in status["c concat_xformers"]
    assert "CUDA alone" in status["c concat_cudnn"]


def test_a_way_that_leaves_the_reference_out_is_found() -> None:
    layers = [
        make_layer(s, references=1, pictures=1, device="cpu", dtype=torch.float32) for s in SHAPES
    ]

    def without(layer: Layer) -> tuple[torch.Tensor, ...]:
        attended = torch.nn.functional.scaled_dot_product_attention(layer.q, layer.k, layer.v)
        return (attended.transpose(1, 2).flatten(-2),)

    assert largest_error(without, layers) > 0.1
