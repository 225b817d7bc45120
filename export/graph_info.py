"""What an ONNX file says about itself, for the manifest: inputs, outputs, number of nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bootpig_rt.bundle.manifest import TensorInfo, TensorType
from bootpig_rt.errors import CheckpointError

_STANDARD = ("", "ai.onnx")

_DTYPES: dict[int, TensorType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class OnnxInfo:
    """Interface and size of a graph.

    Attributes:
        inputs: In the order of the graph.
        outputs: In the order of the graph.
        num_nodes: Of the main graph; the body of a function counts as one.
        opset: Of the standard operators.
        operators: Name -> number of nodes, with the domain where it is not the standard one.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    num_nodes: int
    opset: int
    operators: dict[str, int]


def read_onnx(path: Path) -> OnnxInfo:
    """Read a graph without its weights.

    Raises:
        CheckpointError: The file is missing, truncated or no ONNX graph.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds, which differ between its versions
        raise CheckpointError(
            f"{path} is missing, truncated or no ONNX graph ({type(error).__name__}); "
            "build it again with: bootpig-rt build-engine",
            path,
        ) from error
    operators: dict[str, int] = {}
    for node in model.graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        operators[name] = operators.get(name, 0) + 1
    weights = {tensor.name for tensor in model.graph.initializer}
    return OnnxInfo(
        inputs=tuple(_tensor(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        num_nodes=len(model.graph.node),
        opset=max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1
        ),
        operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
    )


def _tensor(value: Any) -> TensorInfo:
    kind = value.type.tensor_type
    shape = tuple(
        int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or "?"
        for axis in kind.shape.dim
    )
    return TensorInfo(value.name, _DTYPES.get(kind.elem_type, "float32"), shape)
