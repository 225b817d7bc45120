"""The body of the operator in ONNX Runtime, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from bootpig_rt.export.attention_text import ORT_DOMAIN
from bootpig_rt.export.reference_op import (
    DOMAIN,
    OP_TYPE,
    function_body,
    needs_out_weight,
    token_attributes,
)
from bootpig_rt.kernels import eager_ops

HEADS, TOKENS, REF_TOKENS, WIDTH, OUT = 2, 5, 7, 4, 6

Arrays = dict[str, npt.NDArray[Any]]


def session(merge: Any, *, half: bool = False, dialect: Any = "portable") -> ort.InferenceSession:
    """A graph of one node."""
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    names = ["q", "k", "v", "ref_k", "ref_v", "ref_of_row"]
    names += ["out_weight"] if needs_out_weight(merge) else []
    attributes = {} if dialect == "portable" else token_attributes(HEADS, HEADS * WIDTH)
    node = helper.make_node(
        OP_TYPE, names, ["attended"], domain=DOMAIN, merge=merge, scale=WIDTH**-0.5, **attributes
    )
    shape = [None, HEADS, None, WIDTH] if dialect == "portable" else [None, None, HEADS * WIDTH]
    inputs = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT64 if name == "ref_of_row" else dtype,
            shape if name in ("q", "k", "v") else None,
        )
        for name in names
    ]
    output = helper.make_tensor_value_info("attended", dtype, None)
    standard = 23 if dialect == "cpu" else 20
    opsets = [helper.make_opsetid(*each) for each in (("", standard), (DOMAIN, 1), (ORT_DOMAIN, 1))]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [output]),
        opset_imports=opsets,
        ir_version=10,
    )
    model.functions.append(function_body(merge, half=half, dialect=dialect))
    return ort.InferenceSession(model.SerializeToString())


def arrays(rows: int, refs: list[list[int]], *, seed: int = 0) -> Arrays:
    """Random inputs; the table has four references."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> npt.NDArray[Any]:
        return rng.standard_normal(shape).astype(np.float32)

    made: Arrays = {name: normal(rows, HEADS, TOKENS, WIDTH) for name in "qkv"}
    made |= {name: normal(4, HEADS, REF_TOKENS, WIDTH) for name in ("ref_k", "ref_v")}
    made["out_weight"] = normal(OUT, HEADS * WIDTH)
    slots = len(refs[0]) if refs else 1
    made["ref_of_row"] = np.array(refs, np.int64).reshape(len(refs), slots)
    return made


def tokens(by_head: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N, H, S, D] -> [N, S, H * D]."""
    rows, heads, count, width = by_head.shape
    return by_head.transpose(0, 2, 1, 3).reshape(rows, count, heads * width)


def run(
    merge: Any, inputs: Arrays, *, half: bool = False, dialect: Any = "portable"
) -> npt.NDArray[Any]:
    """What the body computes, after the output projection [N, S, OUT]."""
    known = session(merge, half=half, dialect=dialect)
    names = {value.name for value in known.get_inputs()}
    fed = {
        name: array.astype(np.float16) if half and array.dtype == np.float32 else array
        for name, array in inputs.items()
        if name in names
    }
    if dialect != "portable":
        fed |= {name: tokens(fed[name]) for name in "qkv"}
    (attended,) = known.run(None, fed)
    joined = tokens(attended.astype(np.float32)) if dialect == "portable" else attended
    projected: npt.NDArray[Any] = joined @ inputs["out_weight"].T
    return projected


def oracle(merge: str, inputs: Arrays) -> npt.NDArray[Any]:
    """The same by the eager twins of the kernels."""
    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    rows, reading = len(inputs["q"]), len(inputs["ref_of_row"])
    slots = inputs["ref_of_row"].shape[1]
    refs = torch.full((rows, slots), -1)
    refs[rows - reading :] = tensors["ref_of_row"]
    table = (tensors["ref_k"][None], tensors["ref_v"][None], refs, torch.tensor([0]))
    own, weight = (tensors["q"], tensors["k"], tensors["v"]), tensors["out_weight"]
    if merge in ("one", "concat"):
        projected: Any = eager_ops.attention(*own, *table) @ weight.T
    else:
        plain, deltas = eager_ops.attention_deltas(*own, *table, 0)
        projected = eager_ops.merge(plain @ weight.T, deltas @ weight.T, refs, 0, merge)
    found: npt.NDArray[Any] = projected.numpy()
    return found


@pytest.mark.parametrize("merge", ["argmax", "softmax", "mean", "concat"])
@pytest.mark.parametrize(
    ("rows", "refs"),
    [
        (3, [[0, 1, 2], [3, 0, 1]]),
        (4, [[2, -1, -1], [1, 3, -1], [0, 1, 2]]),
        (2, [[1, 3], [0, -1]]),
        (2, []),
        (3, [[2], [1]]),
    ],
    ids=["three each", "mixed", "no plain row", "no reference", "one each"],
)
@pytest.mark.parametrize("dialect", ["portable", "cpu", "cpu-large"])
def test_a_merge_is_that_of_the_oracle(
    merge: str, rows: int, refs: list[list[int]], dialect: str
) -> None:
    inputs = arrays(rows, refs)
    found = run(merge, inputs, dialect=dialect)
    np.testing.assert_allclose(found, oracle(merge, inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dialect", ["portable", "cpu", "cpu-large"])
@pytest.mark.parametrize(("rows", "refs"), [(3, [[2], [0]]), (3, [[1]]), (3, []), (2, [[1], [3]])])
def test_one_reference_a_row_needs_no_merge(rows: int, refs: list[list[int]], dialect: str) -> None:
    inputs = arrays(rows, refs)
    found = run("one", inputs, dialect=dialect)
    np.testing.assert_allclose(found, oracle("one", inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("merge", ["argmax", "softmax", "mean", "concat"])
def test_a_slot_without_a_reference_changes_nothing(merge: str) -> None:
    narrow, wide = arrays(2, [[0, 2]]), arrays(2, [[0, 2]])
    wide["ref_of_row"] = np.array([[0, 2, -1, -1]], np.int64)
    np.testing.assert_allclose(run(merge, wide), run(merge, narrow), rtol=1e-6, atol=1e-6)


def test_the_lowest_slot_wins_a_tie() -> None:
    inputs = arrays(1, [[3, 1]])
    # Values whose change has the same length in opposite directions: references 1 and 3.
    inputs["q"][:] = 0
    inputs["v"][:] = 0
    inputs["ref_v"][3] = 1.0
    inputs["ref_v"][1] = -1.0
    first = run("argmax", inputs)
    inputs["ref_of_row"] = inputs["ref_of_row"][:, ::-1].copy()
    np.testing.assert_allclose(run("argmax", inputs), -first, rtol=1e-6)
    inputs["ref_of_row"] = np.array([[3, -1]], np.int64)
    np.testing.assert_allclose(run("argmax", inputs), first, rtol=1e-6)


@pytest.mark.parametrize("merge", ["one", "argmax", "softmax", "mean", "concat"])
def test_float16_differs_by_its_rounding_alone(merge: str) -> None:
    inputs = arrays(3, [[2], [0]] if merge == "one" else [[0, 2], [1, -1]])
    expected = oracle(merge, inputs)
    np.testing.assert_allclose(run(merge, inputs, half=True), expected, atol=0.03)


def test_scores_beyond_float16_stay_finite() -> None:
    inputs = arrays(2, [[0]])
    inputs["q"] *= 300.0
    inputs["k"] *= 300.0
    assert np.abs(inputs["q"] @ inputs["k"].transpose(0, 1, 3, 2)).max() > 65504
    result = run("one", inputs, half=True)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, oracle("one", inputs), atol=0.1)


def test_the_body_holds_standard_operators_alone() -> None:
    for merge in ("one", "argmax", "softmax", "mean", "concat"):
        body = function_body(merge, half=True)
        assert {node.domain for node in body.node} == {""}
        assert all(onnx.defs.has(node.op_type, 20) for node in body.node)


@pytest.mark.parametrize(
    ("dialect", "operator"), [("cpu", "Attention"), ("cpu-large", "MultiHeadAttention")]
)
def test_a_body_for_a_cpu_leaves_attention_to_one_operator(dialect: Any, operator: str) -> None:
    for merge in ("one", "argmax", "softmax", "mean"):
        body = function_body(merge, half=False, dialect=dialect)
        kinds = [node.op_type for node in body.node]
        # Rows without references, rows with, and those once more without for their change.
        assert kinds.count(operator) == (3 if needs_out_weight(merge) else 2)
        assert "Softmax" not in kinds or merge == "softmax"  # that one is over references
