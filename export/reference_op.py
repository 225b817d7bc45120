"""Reference self-attention as one ONNX operator of our own domain.

    ReferenceAttention <merge, scale> (q, k, v, ref_k, ref_v, ref_of_row [, out_weight])

- q, k, v [N, H, S, D]: rows of the Base U-Net, those that read references last. In graphs for a CPU
  they are tokens, [N, S, H * D], as ONNX Runtime's own attention takes them.
- ref_k, ref_v [F, H, M, D]: the reference table, references of all entries and subjects in a row.
- ref_of_row int64 [Nr, R]: what each of the last Nr rows reads; -1 pads rows with fewer references,
  and every one of these rows reads at least one.
- out_weight [C, H * D]: weight of the output projection, for merges that compare its results.
- the result, of the shape of q, is what the output projection reads.

The first N - Nr rows attend to themselves. The split follows shapes alone, so no value is read back
from a device. The operator's body is a model-local function of standard operators: a runtime
without a kernel of that name runs the body, one with a kernel (TensorRT's plugin) replaces it.

A merge is linear in what is attended, so it is done ahead of the output projection W. With o_i the
attention to own tokens and reference i, and o that to own tokens alone, `argmax` takes the o_i with
the largest || W (o_i - o) ||, `softmax` weighs the o_i by the softmax of these norms, and `mean`
averages them (BootPIG, arXiv 2401.13974, eq. 5 to 8; the weights add up to 1, so o cancels).
`concat` is one softmax over all tokens. `one` is for R = 1, where all merges agree.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import onnx
import torch
from onnx import parser
from torch import Tensor

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.export.attention_text import ORT_DOMAIN, expand
from bootpig_rt.export.dialect import OPSETS, Dialect
from bootpig_rt.models.attention import join_heads, split_heads

DOMAIN = "bootpig_rt"
OP_TYPE = "ReferenceAttention"
VERSION = 1

OpMerge: TypeAlias = Merge | Literal["one"]
"""How several references of a row are combined; `one`: every row has one."""


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    out_weight: Tensor,
    merge: OpMerge,
    scale: float,
    dialect: Dialect,
) -> Tensor:
    """Put the operator into a graph that is being traced; it is not computed.

    q, k, v and the result are tokens [N, S, H * D], `heads` is H, the table [F, H, M, D];
    `ref_of_row` int64 [Nr, R] is what the last rows read, `out_weight` that of the output
    projection, `scale` that of the scores.
    """
    attributes: dict[str, Any] = {"merge": merge, "scale": scale}
    own = (q, k, v)
    if dialect == "portable":
        own = (split_heads(q, heads), split_heads(k, heads), split_heads(v, heads))
    else:
        attributes |= token_attributes(heads, q.shape[-1])
    inputs = (*own, ref_k, ref_v, ref_of_row)
    attended: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OP_TYPE}",
        (*inputs, out_weight) if needs_out_weight(merge) else inputs,
        attributes,
        dtype=q.dtype,
        shape=own[0].shape,
        version=VERSION,
    )
    return join_heads(attended) if dialect == "portable" else attended


def needs_out_weight(merge: str) -> bool:
    """Whether the operator has the input `out_weight`."""
    return merge in ("argmax", "softmax")


def token_attributes(heads: int, inner: int) -> dict[str, Any]:
    """Attributes of an operator that takes tokens [N, S, `inner`]: what its body reads."""
    return {
        "heads": heads,
        "joined_shape": [0, 0, inner],
        "split_shape": [0, 0, heads, inner // heads],
    }


def function_body(
    merge: OpMerge, *, half: bool, dialect: Dialect = "portable"
) -> onnx.FunctionProto:
    """The operator as a function of others.

    Args:
        merge: How references are combined.
        half: q, k, v and the table are float16: scores, softmax and norms are then float32, because
            the scores of Stable Diffusion 2.1 are too large for float16.
        dialect: How attention is written. But for `portable`, the operator takes tokens and has the
            attributes of `token_attributes`, and all is float32.
    """
    is_operator = dialect != "portable"
    weight = ", out_weight" if needs_out_weight(merge) else ""
    more = ", joined_shape, split_shape, heads" if is_operator else ""
    imports = f', "{ORT_DOMAIN}" : 1' if dialect == "cpu-large" else ""
    split, merged, join = _SPLIT, _MERGES[merge], _JOIN
    if dialect == "cpu":
        split, join = _SPLIT_SOME, _JOIN_SOME
        merged = merged.replace("ref_of_row", "some_refs").replace("ref_rows", "some_ref_rows")
    if is_operator and merge != "one":
        split = split.replace("_r = Slice", "_r_tokens = Slice")
        merged = _BY_HEAD + merged + _BY_TOKEN
        join = join.replace("merged", "merged_tokens")
    text = f"""
    <opset_import: ["" : {OPSETS[dialect]}{imports}], domain: "{DOMAIN}">
    {OP_TYPE} <merge, scale{more}> (q, k, v, ref_k, ref_v, ref_of_row{weight}) => (attended) {{
        {_SHAPES if is_operator else ""}
        {split}
        {merged}
        {join}
    }}"""
    return parser.parse_function(expand(text, half, dialect))


# Between tokens [N, S, H * D], which ONNX Runtime's attention takes, and [N, H, S, D].
_SHAPES = """
        joined_shape = Constant <value_ints : ints = @joined_shape> ()
        split_shape = Constant <value_ints : ints = @split_shape> ()
"""

# Merges of several references are written for rows by head.
_BY_HEAD = """
        SPLIT (q_r, q_r_tokens)
        SPLIT (k_r, k_r_tokens)
        SPLIT (v_r, v_r_tokens)
"""

_BY_TOKEN = """
        JOIN (merged_tokens, merged)
"""

# Rows without references (`_p`) and with (`_r`). Two Slices and no Split, behind which TensorRT
# does not fuse the attention.
_NUMBERS = """
        rows = Shape <start = 0, end = 1> (q)
        ref_rows = Shape <start = 0, end = 1> (ref_of_row)
        plain_rows = Sub (rows, ref_rows)
        first = Constant <value_ints = [0]> ()
        SCALED (q_scaled, q)
"""

_SLICES = """
        q_p = Slice (q_scaled, first, plain_end, first)
        q_r = Slice (q_scaled, ref_start, rows, first)
        k_p = Slice (k, first, plain_end, first)
        k_r = Slice (k, ref_start, rows, first)
        v_p = Slice (v, first, plain_end, first)
        v_r = Slice (v, ref_start, rows, first)
"""

_PLAIN = """
        ATTEND_OWN (plain, q_p, k_p, v_p)
"""

_SPLIT = (
    _NUMBERS
    + _SLICES.replace("plain_end", "plain_rows").replace("ref_start", "plain_rows")
    + _PLAIN
)

_JOIN = """
        attended = Concat <axis = 0> (plain, merged)
"""

# The same with at least one row of either kind, as ONNX Runtime's `Attention` refuses none: where
# there is none, a row of the other kind is computed and left out.
_SPLIT_SOME = (
    _NUMBERS
    + """
        a_row = Constant <value_ints = [1]> ()
        some_plain_rows = Max (plain_rows, a_row)
        some_ref_rows = Max (ref_rows, a_row)
        first_ref_row = Sub (rows, some_ref_rows)
"""
    + _SLICES.replace("plain_end", "some_plain_rows").replace("ref_start", "first_ref_row")
    + """
        slots_of_row = Shape <start = 1, end = 2> (ref_of_row)
        a_ref = Constant <value_int = 0> ()
        refs_shape = Concat <axis = 0> (a_row, slots_of_row)
        more_refs = Expand (a_ref, refs_shape)
        many_refs = Concat <axis = 0> (ref_of_row, more_refs)
        some_refs = Slice (many_refs, first, some_ref_rows, first)
"""
    + _PLAIN
)

_JOIN_SOME = """
        both = Concat <axis = 0> (plain, merged)
        left_out = Sub (some_plain_rows, plain_rows)
        left_end = Add (left_out, rows)
        attended = Slice (both, left_out, left_end, first)
"""

_ONE = """
        flat = Constant <value_ints = [-1]> ()
        index = Reshape (ref_of_row, flat)
        picked_k = Gather <axis = 0> (ref_k, index)
        picked_v = Gather <axis = 0> (ref_v, index)
        ATTEND_BOTH (merged, q_r, k_r, v_r, picked_k, picked_v)
"""

# [Nr, R, H, M, D] of each row's references; slots that hold -1 are read as 0 and masked later.
_PICK = """
        none = Constant <value_int = 0> ()
        index = Max (ref_of_row, none)
        is_there = GreaterOrEqual (ref_of_row, none)
        picked_k = Gather <axis = 0> (ref_k, index)
        picked_v = Gather <axis = 0> (ref_v, index)
"""

# o_i [Nr, R, H, S, D] of each reference: its tokens behind the row's own. Rows and slots are one
# axis there, because TensorRT fuses attentions of four axes only.
_EACH = (
    _PICK
    + """
        slot_axis = Constant <value_ints = [1]> ()
        own_k = Unsqueeze (k_r, slot_axis)
        own_v = Unsqueeze (v_r, slot_axis)
        slots = Shape <start = 1, end = 2> (ref_of_row)
        one = Constant <value_ints = [1]> ()
        repeat = Concat <axis = 0> (one, slots, one, one, one)
        repeated_k = Expand (own_k, repeat)
        repeated_v = Expand (own_v, repeat)
        all_k = Concat <axis = 3> (repeated_k, picked_k)
        all_v = Concat <axis = 3> (repeated_v, picked_v)
        own_q = Unsqueeze (q_r, slot_axis)
        repeated_q = Expand (own_q, repeat)
        attentions = Mul (ref_rows, slots)
        size_of_q = Shape <start = 2> (repeated_q)
        size_of_k = Shape <start = 2> (all_k)
        flat_q_shape = Concat <axis = 0> (attentions, size_of_q)
        flat_k_shape = Concat <axis = 0> (attentions, size_of_k)
        flat_q = Reshape <allowzero = 1> (repeated_q, flat_q_shape)
        flat_k = Reshape <allowzero = 1> (all_k, flat_k_shape)
        flat_v = Reshape <allowzero = 1> (all_v, flat_k_shape)
        ATTEND (flat_each, flat_q, flat_k, flat_v)
        each_shape = Shape (repeated_q)
        each = Reshape <allowzero = 1> (flat_each, each_shape)
"""
)

# || W (o_i - o) || over all channels, [Nr, R, S].
_NORMS = (
    _EACH
    + """
        ATTEND (alone, q_r, k_r, v_r)
        own = Unsqueeze (alone, slot_axis)
        change = Sub (each, own)
        by_token = Transpose <perm = [0, 1, 3, 2, 4]> (change)
        tokens = Shape <start = 2, end = 3> (q_r)
        width = Shape <start = 1, end = 2> (out_weight)
        join = Concat <axis = 0> (ref_rows, slots, tokens, width)
        joined = Reshape <allowzero = 1> (by_token, join)
        weight_t = Transpose <perm = [1, 0]> (out_weight)
        projected = MatMul (joined, weight_t)
        WIDE (projected32, projected)
        channels = Constant <value_ints = [-1]> ()
        norms = ReduceL2 <keepdims = 0> (projected32, channels)
        token_axis = Constant <value_ints = [2]> ()
        is_slot = Unsqueeze (is_there, token_axis)
"""
)

# Weighted sum of the o_i with `weights` [Nr, R, 1 or S].
_WEIGH = """
        weight_axes = Constant <value_ints = [2, 4]> ()
        wide_weights = Unsqueeze (weights, weight_axes)
        WIDE (each32, each)
        weighted = Mul (each32, wide_weights)
        summed = ReduceSum <keepdims = 0> (weighted, slot_axis)
        merged = CastLike (summed, q)
"""

_MERGES = {
    "one": _ONE,
    "argmax": _NORMS
    + """
        lowest = Constant <value_float = -1.0> ()
        seen = Where (is_slot, norms, lowest)
        best = ArgMax <axis = 1, keepdims = 1, select_last_index = 0> (seen)
        zero = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        scalar = Constant <value_ints = [0]> ()
        num_slots = Squeeze (slots, scalar)
        numbers = Range (zero, num_slots, step)
        column_axes = Constant <value_ints = [0, 2]> ()
        column = Unsqueeze (numbers, column_axes)
        chosen = Equal (column, best)
        weights = Cast <to = 1> (chosen)
"""
    + _WEIGH,
    "softmax": _NORMS
    + """
        lowest = Constant <value_float = -1e30> ()
        seen = Where (is_slot, norms, lowest)
        weights = Softmax <axis = 1> (seen)
"""
    + _WEIGH,
    "mean": _EACH
    + """
        there = Cast <to = 1> (is_there)
        count = ReduceSum <keepdims = 1> (there, slot_axis)
        share = Div (there, count)
        token_axis = Constant <value_ints = [2]> ()
        weights = Unsqueeze (share, token_axis)
"""
    + _WEIGH,
    # Tokens of slots without a reference get a score that the softmax turns into 0.
    "concat": _PICK
    + """
        by_head_k = Transpose <perm = [0, 2, 1, 3, 4]> (picked_k)
        by_head_v = Transpose <perm = [0, 2, 1, 3, 4]> (picked_v)
        size = Shape (ref_k)
        heads = Shape <start = 1, end = 2> (ref_k)
        tokens = Shape <start = 2, end = 3> (ref_k)
        width = Shape <start = 3, end = 4> (ref_k)
        slots = Shape <start = 1, end = 2> (ref_of_row)
        many = Mul (slots, tokens)
        row_shape = Concat <axis = 0> (ref_rows, heads, many, width)
        many_k = Reshape <allowzero = 1> (by_head_k, row_shape)
        many_v = Reshape <allowzero = 1> (by_head_v, row_shape)
        all_k = Concat <axis = 2> (k_r, many_k)
        all_v = Concat <axis = 2> (v_r, many_v)
        own_tokens = Shape <start = 2, end = 3> (k_r)
        nothing = Constant <value_float = 0.0> ()
        lowest = Constant <value_float = -1e30> ()
        slot_mask = Where (is_there, nothing, lowest)
        last = Constant <value_ints = [2]> ()
        slot_column = Unsqueeze (slot_mask, last)
        one = Constant <value_ints = [1]> ()
        repeat = Concat <axis = 0> (one, one, tokens)
        by_token = Expand (slot_column, repeat)
        mask_shape = Concat <axis = 0> (ref_rows, many)
        ref_mask = Reshape <allowzero = 1> (by_token, mask_shape)
        own_shape = Concat <axis = 0> (ref_rows, own_tokens)
        own_mask = Expand (nothing, own_shape)
        flat_mask = Concat <axis = 1> (own_mask, ref_mask)
        mask_axes = Constant <value_ints = [1, 2]> ()
        mask = Unsqueeze (flat_mask, mask_axes)
        ATTEND (merged, q_r, all_k, all_v, mask)
""",
}
