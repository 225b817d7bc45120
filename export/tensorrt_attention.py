"""Attention in the form that TensorRT fuses and still sums in float32.

Graphs in float16 cast queries and keys to float32 and multiply them there, which says what is
meant. TensorRT then runs the product in float32 and writes all scores to memory. Where the cast
stands behind the product instead, it makes one fused kernel whose scores are summed in float32 and
never leave it; without any cast the fused kernel sums them in float16, which overflows with the
weights of Stable Diffusion 2.1. All three were read from the plans of TensorRT-RTX 1.7.1.

Moving the cast is safe only where one fused kernel comes of it: a product by itself rounds its
scores to float16. Heads of more than 256 channels, such as the one head of 512 in the autoencoder
of Stable Diffusion, are not fused and keep their casts. What really came of a graph is in the
report of `tensorrt_layers`; the builder reads it and builds again without the move where it failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import ModelProto, TensorProto, helper

LARGEST_FUSED_HEAD_DIM = 256
"""Widest head that TensorRT-RTX 1.7.1 fuses, on each architecture that it builds for."""


def cast_behind_scores(model: ModelProto) -> int:
    """Move the casts to float32 from ahead of each attention's first product to behind it.

    The model is changed in place, bodies of functions too; heads that are known to be too wide to
    be fused are left as they are. Returns how many attentions were changed.
    """
    changed = 0
    head_dims = _last_sizes(model)
    for body in (model.graph, *model.functions):
        nodes = list(body.node)
        maker = {name: node for node in nodes for name in node.output}
        users = {name: [n for n in nodes if name in n.input] for n in nodes for name in n.output}
        for product in nodes:
            if product.op_type != "MatMul" or not _reaches_softmax(product.output[0], users):
                continue
            casts = [maker.get(name) for name in product.input]
            if not all(cast is not None and _is_cast_to_float(cast) for cast in casts):
                continue
            if head_dims.get(product.input[0], 0) > LARGEST_FUSED_HEAD_DIM:
                continue
            for i, cast in enumerate(casts):
                assert cast is not None
                product.input[i] = cast.input[0]
            wide = product.output[0]
            product.output[0] = f"{wide}_half"
            behind = helper.make_node("Cast", [product.output[0]], [wide], to=TensorProto.FLOAT)
            nodes.insert(_index(nodes, product) + 1, behind)
            changed += 1
        used = {name for node in nodes for name in node.input} | set(_outputs(body))
        kept = [n for n in nodes if not _is_cast_to_float(n) or n.output[0] in used]
        del body.node[:]
        body.node.extend(kept)
    return changed


def _last_sizes(model: ModelProto) -> dict[str, int]:
    """Value of the graph -> size of its last axis, where the graph says it as a number.

    Bodies of functions say no sizes: theirs are the heads of the U-Nets, 160 channels at most.
    """
    sizes = {}
    for value in model.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[-1].HasField("dim_value"):
            sizes[value.name] = dims[-1].dim_value
    return sizes


def _reaches_softmax(name: str, users: dict[str, list[Any]]) -> bool:
    """Whether a value is a softmax's scores, with at most a mask added."""
    readers = users.get(name, [])
    if len(readers) == 1 and readers[0].op_type == "Add":
        readers = users.get(readers[0].output[0], [])
    return len(readers) == 1 and readers[0].op_type == "Softmax"


def _is_cast_to_float(node: Any) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == TensorProto.FLOAT for attribute in node.attribute
    )


def _outputs(body: Any) -> Iterator[str]:
    for output in body.output:
        yield output if isinstance(output, str) else output.name


def _index(nodes: list[Any], wanted: Any) -> int:
    return next(i for i, node in enumerate(nodes) if node is wanted)
