"""Models of OpenVINO: the memory that their weights take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.host_memory import return_freed_memory
from bootpig_rt.backends.openvino.models import GraphFile, Models, compiled_bytes
from tests.own_memory import own_bytes

ov = pytest.importorskip("openvino")


def product(stored: Any, side: int, count: int) -> Any:
    """A graph of products with square weights of a type, named x -> y."""
    op = ov.opset13
    x = op.parameter([-1, side], np.float32, name="x")
    y = x
    for _ in range(count):
        weight = op.convert(op.constant(np.full((side, side), 0.01, stored)), np.float32)
        y = op.matmul(y, weight, False, True)
    return ov.Model([y], [x])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory")
def test_weights_in_float32_are_read_where_their_file_is_mapped(tmp_path: Path) -> None:
    def taken(stored: Any) -> int:
        file = GraphFile(tmp_path / f"{np.dtype(stored).name}.xml", "")
        ov.save_model(product(stored, 1024, 16), file.path, compress_to_fp16=False)
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        models = Models(ov.Core(), lambda _: file, config=lambda _: config, narrow=None, cache=None)
        return_freed_memory()
        before = own_bytes()
        models.get("graph", (("x", (64, 1024)),))({"x": np.zeros((64, 1024), np.float32)})
        return_freed_memory()
        return own_bytes() - before

    laid_out = 16 * 1024 * 1024 * 4
    taken(np.float32)  # what OpenVINO loads for itself
    assert taken(np.float16) > 1.8 * laid_out  # widened as well
    assert taken(np.float32) < 1.3 * laid_out


@pytest.mark.parametrize(
    ("stored", "is_narrow", "bytes_each"),
    [(np.float16, False, 8), (np.float16, True, 6), (np.float32, False, 4), (np.float32, True, 2)],
)
def test_the_memory_that_a_model_will_take_follows_from_how_its_weights_are_stored(
    stored: Any, is_narrow: bool, bytes_each: int
) -> None:
    model = product(stored, 64, 2)
    assert compiled_bytes(model, is_narrow=is_narrow) == bytes_each * 2 * 64 * 64
