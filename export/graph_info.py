"""What an ONNX file says about itself, for the manifest: inputs, outputs, number of nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from bootpig_rt.bundle.manifest import FileInfo, GraphInfo, TensorInfo, TensorType
from bootpig_rt.errors import CheckpointError

_DTYPES: dict[int, TensorType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
}


def read_graph(folder: Path, file: FileInfo) -> tuple[GraphInfo, int]:
    """Read a graph without its weights: what it is, and the opset of the standard operators.

    Raises:
        CheckpointError: The file is missing, truncated or no ONNX graph.
    """
    path = folder / file.path
    model = _load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    info = GraphInfo(
        name=path.stem,
        file=file.path,
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        num_nodes=len(model.graph.node),
        inputs=tuple(_tensor(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_tensor(value) for value in model.graph.output),
    )
    opsets = (o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return info, max(opsets, default=1)


def read_operators(path: Path) -> dict[str, int]:
    """Name -> number of nodes of a graph, with the domain where it is not the standard one.

    Raises:
        CheckpointError: The file is missing, truncated or no ONNX graph.
    """
    found = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in _load(path).graph.node
    )
    return dict(found.most_common())


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds, which differ between its versions
        raise CheckpointError(
            f"{path} is missing, truncated or no ONNX graph ({type(error).__name__}); "
            "build it again with: bootpig-rt build-engine",
            path,
        ) from error


def _tensor(value: Any) -> TensorInfo:
    kind = value.type.tensor_type
    shape = tuple(
        int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or "?"
        for axis in kind.shape.dim
    )
    return TensorInfo(value.name, _DTYPES.get(kind.elem_type, "float32"), shape)
