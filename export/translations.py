"""Operators of torch as our graphs write them in ONNX, where we know better than the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import ir, opset20, values

from bootpig_rt.export.attention_text import ORT_DOMAIN
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.reference_op import DOMAIN

# While tracing, the operators take values that the types of onnxscript do not name.
op: Any = opset20


def translations(dialect: Dialect) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export`."""
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.aten.scaled_dot_product_attention.default: (
            _attention if dialect == "portable" else _OPERATORS[dialect]
        ),
        torch.ops.aten.silu.default: _silu,
    }
    if dialect != "portable":
        table[torch.ops.aten.group_norm.default] = _group_norm
    return table


def name_attention(model: Any) -> None:
    """Give `Attention` its own domain; the exporter mixes no opsets, so it was traced in ours."""
    for node in model.graph:
        if (node.domain, node.op_type) == (DOMAIN, "Attention"):
            node.domain, node.version = "", None


def _known(name: str, domain: str, *heads: str) -> Any:
    """An operator of attention that the tracer does not know, as it is used here.

    Queries [B, S, H * D], keys and values [B, L, H * D]; the result is [B, S, H * D]. `heads` are
    the attributes that hold H.
    """
    schema = onnx.defs.OpSchema
    described = schema(
        name,
        domain,
        1,
        inputs=[schema.FormalParameter(each, "T") for each in ("q", "k", "v")],
        outputs=[schema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)"], "float32")],
        attributes=[
            *(schema.Attribute(each, schema.AttrType.INT) for each in heads),
            schema.Attribute("scale", schema.AttrType.FLOAT),
        ],
    )
    return values.Op(values.Opset(domain, 1), name, described)


_onnx_attention = _known("Attention", DOMAIN, "q_num_heads", "kv_num_heads")
_ort_attention = _known("MultiHeadAttention", ORT_DOMAIN, "num_heads")


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention` with one scaling, and scores in float32.

    Source of the formula: the documentation of `torch.nn.functional.scaled_dot_product_attention`.
    """
    width = query.shape[-1]
    factor = width**-0.5 if scale is None else scale
    half = query.dtype == ir.DataType.FLOAT16
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    key_t = op.Transpose(key, perm=[0, 1, 3, 2])
    if half:
        scaled, key_t = op.Cast(scaled, to=1), op.Cast(key_t, to=1)
    scores = op.MatMul(scaled, key_t)
    if is_causal:
        size = key.shape[-2]
        mask = torch.full((size, size), -1e30).triu(1)
        scores = op.Add(scores, op.Constant(value=ir.tensor(mask.numpy())))
    elif attn_mask is not None:
        if attn_mask.dtype == ir.DataType.BOOL:
            zero, lowest = op.Constant(value_float=0.0), op.Constant(value_float=-1e30)
            attn_mask = op.Where(attn_mask, zero, lowest)
        scores = op.Add(scores, op.Cast(attn_mask, to=1))
    share = op.Softmax(scores, axis=-1)
    if half:
        share = op.Cast(share, to=10)
    return op.MatMul(share, value)


def _operator(attend: Callable[..., Any]) -> Callable[..., Any]:
    """The same as one operator that takes tokens [B, S, H * D]: `attend(q, k, v, heads, scale)`.

    Masked attention stays written out: with a mask the operators hold all scores as well.
    """

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if is_causal or attn_mask is not None:
            return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        _, heads, _, width = query.shape
        joined = (_tokens(each) for each in (query, key, value))
        attended = attend(*joined, heads, width**-0.5 if scale is None else scale)
        split = op.Reshape(attended, _shape(0, 0, heads, value.shape[-1]))
        return op.Transpose(split, perm=[0, 2, 1, 3])

    return attention


_OPERATORS: dict[str, Callable[..., Any]] = {
    "cpu": _operator(
        lambda q, k, v, heads, scale: _onnx_attention(
            q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale
        )
    ),
    "cpu-large": _operator(
        lambda q, k, v, heads, scale: _ort_attention(q, k, v, num_heads=heads, scale=scale)
    ),
}


def _tokens(by_head: Any) -> Any:
    """[B, H, S, D] -> [B, S, H * D]: what it was made from, where it was made from that."""
    _, heads, _, width = by_head.shape
    transpose = by_head.producer()
    split = None if transpose is None else transpose.inputs[0].producer()
    if split is not None and (transpose.op_type, split.op_type) == ("Transpose", "Reshape"):
        tokens = split.inputs[0]
        is_swap = list(transpose.attributes["perm"].value) == [0, 2, 1, 3]
        if is_swap and len(tokens.shape) == 3 and tokens.shape[-1] == heads * width:
            return tokens
    return op.Reshape(op.Transpose(by_head, perm=[0, 2, 1, 3]), _shape(0, 0, heads * width))


def _shape(*sizes: int) -> Any:
    """For `Reshape`, where 0 keeps an axis."""
    return op.Constant(value_ints=list(sizes))


def _silu(x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True
) -> Any:
    """`group_norm` whose scale and offset are one pass: a batch norm of mean 0 and variance 1."""
    one, zero = op.Constant(value_floats=[1.0]), op.Constant(value_floats=[0.0])
    several = op.Constant(value_ints=[groups])
    grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    normed = op.InstanceNormalization(
        grouped, op.Expand(one, several), op.Expand(zero, several), epsilon=eps
    )
    normed = op.Reshape(normed, op.Shape(x))
    if weight is None:
        return normed
    ones, zeros = (op.Expand(each, op.Shape(weight)) for each in (one, zero))
    return op.BatchNormalization(normed, weight, bias, zeros, ones, epsilon=0.0)
