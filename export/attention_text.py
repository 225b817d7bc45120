"""Attention in the text form of ONNX: abbreviations that bodies of operators are written with."""

from __future__ import annotations

from bootpig_rt.export.dialect import Dialect

ORT_DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators."""


def expand(text: str, half: bool, dialect: Dialect) -> str:
    """Write out the abbreviations of a body, a line each.

    `ATTEND (out, q, k, v[, mask])` is softmax(scale * q k^T + mask) v, by head. `ATTEND_OWN (out,
    q, k, v)` and `ATTEND_BOTH (out, q, k, v, ref_k, ref_v)`, over own keys and over own and others,
    are of tokens unless the dialect is `portable`. `SPLIT (by_head, tokens)` and `JOIN (tokens,
    by_head)` lead from one to the other. `WIDE (out, in)` is a conversion to float32. `SCALED (out,
    q)` multiplies the queries, unless the operators of attention do.
    """
    lines = []
    for line in text.splitlines():
        name, _, arguments = line.strip().rstrip(")").partition(" (")
        names = arguments.split(", ")
        if name == "ATTEND":
            lines += _attend(*names, half=half, dialect=dialect)
        elif name == "ATTEND_OWN":
            lines += _attend_own(*names, half=half, dialect=dialect)
        elif name == "ATTEND_BOTH":
            lines += _attend_both(*names, half=half, dialect=dialect)
        elif name == "SPLIT":
            lines += _split(*names)
        elif name == "JOIN":
            lines += _join(*names)
        elif name == "SCALED":
            is_here = dialect == "portable"
            lines += _scaled(*names) if is_here else [f"{names[0]} = Identity ({names[1]})"]
        elif name == "WIDE":
            lines.append(f"{names[0]} = {'Cast <to = 1>' if half else 'Identity'} ({names[1]})")
        else:
            lines.append(line)
    return "\n".join(lines)


def _split(by_head: str, tokens: str) -> list[str]:
    return [
        f"{by_head}_split = Reshape ({tokens}, split_shape)",
        f"{by_head} = Transpose <perm = [0, 2, 1, 3]> ({by_head}_split)",
    ]


def _join(tokens: str, by_head: str) -> list[str]:
    return [
        f"{tokens}_split = Transpose <perm = [0, 2, 1, 3]> ({by_head})",
        f"{tokens} = Reshape ({tokens}_split, joined_shape)",
    ]


def _sized(out: str, tokens: str) -> list[str]:
    """Say again how wide tokens are: behind a `Slice` it is unknown, and ONNX then takes 0."""
    return [f"{out} = Reshape ({tokens}, joined_shape)"]


def _attend(
    out: str, q: str, k: str, v: str, *mask: str, half: bool, dialect: Dialect
) -> list[str]:
    if dialect == "portable":
        return _attend_written_out(out, q, k, v, *mask, half=half)
    if mask:  # ONNX Runtime's operators hold all scores too then
        return [
            *_scaled(f"{out}_q", q),
            *_attend_written_out(out, f"{out}_q", k, v, *mask, half=half),
        ]
    tokens = [f"{out}_{kind}_tokens" for kind in "qkv"]
    return [
        *(line for pair in zip(tokens, (q, k, v), strict=True) for line in _join(*pair)),
        f"{out}_tokens = {_OPERATORS[dialect]} ({', '.join(tokens)})",
        *_split(out, f"{out}_tokens"),
    ]


def _attend_own(out: str, q: str, k: str, v: str, *, half: bool, dialect: Dialect) -> list[str]:
    if dialect == "portable":
        return _attend_written_out(out, q, k, v, half=half)
    return [*_sized(f"{out}_v", v), f"{out} = {_OPERATORS[dialect]} ({q}, {k}, {out}_v)"]


def _attend_both(
    out: str, q: str, k: str, v: str, ref_k: str, ref_v: str, *, half: bool, dialect: Dialect
) -> list[str]:
    all_k, all_v = f"{out}_all_k", f"{out}_all_v"
    if dialect == "cpu":  # keys of the past come by head, as in the table; it insists on `all_k`
        inputs = f"{q}, {k}, {out}_v, , {ref_k}, {ref_v}"
        return [
            *_sized(f"{out}_v", v),
            f"{out}, {all_k}, {all_v} = {_OPERATORS[dialect]} ({inputs})",
        ]
    if dialect == "cpu-large":
        return [
            *_join(f"{out}_ref_k", ref_k),
            *_join(f"{out}_ref_v", ref_v),
            f"{all_k} = Concat <axis = 1> ({k}, {out}_ref_k)",
            f"{all_v} = Concat <axis = 1> ({v}, {out}_ref_v)",
            *_attend_own(out, q, all_k, all_v, half=half, dialect=dialect),
        ]
    return [
        f"{all_k} = Concat <axis = 2> ({k}, {ref_k})",
        f"{all_v} = Concat <axis = 2> ({v}, {ref_v})",
        *_attend_written_out(out, q, all_k, all_v, half=half),
    ]


_SCALE = "scale : float = @scale"
_OPERATORS = {
    "cpu": f"Attention <q_num_heads : int = @heads, kv_num_heads : int = @heads, {_SCALE}>",
    "cpu-large": f"{ORT_DOMAIN}.MultiHeadAttention <num_heads : int = @heads, {_SCALE}>",
}
"""Of tokens [N, S, H * D]."""


def _scaled(out: str, q: str) -> list[str]:
    return [
        f"{out}_factor32 = Constant <value_float : float = @scale> ()",
        f"{out}_factor = CastLike ({out}_factor32, {q})",
        f"{out} = Mul ({q}, {out}_factor)",
    ]


def _attend_written_out(out: str, q: str, k: str, v: str, *mask: str, half: bool) -> list[str]:
    lines = [f"{out}_kt = Transpose <perm = [0, 1, 3, 2]> ({k})"]
    q32, k32 = q, f"{out}_kt"
    if half:
        q32, k32 = f"{out}_q32", f"{out}_k32"
        lines += [f"{q32} = Cast <to = 1> ({q})", f"{k32} = Cast <to = 1> ({out}_kt)"]
    lines.append(f"{out}_scores = MatMul ({q32}, {k32})")
    scores = f"{out}_scores"
    if mask:
        scores = f"{out}_masked"
        lines.append(f"{scores} = Add ({out}_scores, {mask[0]})")
    lines.append(f"{out}_share = Softmax <axis = -1> ({scores})")
    share = f"{out}_share"
    if half:
        share = f"{out}_share16"
        lines.append(f"{share} = Cast <to = 10> ({out}_share)")
    return [*lines, f"{out} = MatMul ({share}, {v})"]
