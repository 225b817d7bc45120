"""From a pair to ONNX graphs whose weights stay in the pair's own safetensors files.

Traced with `torch.export`, translated by `torch.onnx`, then: constants are folded, but never the
pair's weights; each weight becomes external data that points into the folder, behind a Cast where
the file has another type (runtimes fold it when they load); the body of the reference attention is
added as a model-local function, and written out for CPUs, where nothing replaces it: OpenVINO reads
no functions.

Graphs for every runtime have attention in standard operators, scores and softmax in float32. Those
for ONNX Runtime on a CPU have one operator for it, and U-Nets of `cpu_modules.py`. This file knows
no manifest.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from onnx import inliner
from onnxscript import ir
from onnxscript.optimizer import _optimizer
from torch import nn

from bootpig_rt import __version__
from bootpig_rt.bundle.control import CONTROL_PREFIX
from bootpig_rt.bundle.pair_config import TINY_VAE
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2
from bootpig_rt.errors import EngineError, ParameterError
from bootpig_rt.export.attention_text import ORT_DOMAIN
from bootpig_rt.export.control_graphs import build_control_graph, is_control_graph
from bootpig_rt.export.cpu_modules import for_cpu
from bootpig_rt.export.dialect import OPSETS, Dialect
from bootpig_rt.export.graphs import Graph, build_graph
from bootpig_rt.export.reference_op import function_body
from bootpig_rt.export.stored_weights import StoredTensor, find_weights
from bootpig_rt.export.translations import name_attention, translations
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.models.control import Control
from bootpig_rt.models.control_folder import PairControl
from bootpig_rt.models.load import Pair
from bootpig_rt.models.text_encoders import TwoTextEncoders
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

METADATA_KEY = "bootpig_rt"
"""Key of a graph's metadata: json with `graph`, `precision`, `merge` and `layers`."""

_LARGEST_EMBEDDED_BYTES = 1 << 16
"""Constants of the graph itself, such as masks; weights are never embedded."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16}

# Attribute of a traced module -> part of the pair.
_PARTS = {
    "base": "base_unet",
    "reference": "ref_unet",
    "vae": "vae",
    "tiny_vae": TINY_VAE,
    "text_encoder": "text_encoder",
}


def export_graph(
    name: str,
    pair: Pair,
    folder: Path,
    *,
    precision: Literal["float32", "float16"] = "float32",
    dialect: Dialect = "portable",
) -> Path:
    """Write one graph of a pair, `folder/name.onnx`.

    Args:
        name: One of `GRAPH_NAMES`, `TINY_DECODER`, or one of `build_control_graph`.
        pair: Loaded from `folder`, on the CPU.
        folder: Holds the weights that the graph points to.
        precision: What the graph computes in; text states and reference tables have this type.
        dialect: What it is written for; all but `portable` take float32.

    Returns:
        The file, of a few hundred kilobytes.

    Raises:
        ParameterError: An unknown name or precision.
        CheckpointError: The folder does not hold the pair's weights.
        EngineError: The exporter failed.
        StorageError: The file cannot be written.
    """
    if precision not in _DTYPES:
        raise ParameterError(f"precision is {precision!r}, expected {' or '.join(_DTYPES)}")
    dtype = _DTYPES[precision]
    if dialect != "portable" and precision != "float32":
        raise ParameterError(
            f"dialect {dialect!r} in {precision}, expected float32: scores would be float16, in "
            "which those of Stable Diffusion 2.1 overflow; take 'portable'"
        )
    pair = _of_type(pair, dtype)
    traced = pair if dialect == "portable" else _for_cpu(pair)
    build = build_control_graph if is_control_graph(name) else build_graph
    graph = build(name, traced, dtype=dtype, dialect=dialect)
    return write_graph(
        graph,
        folder,
        half=precision == "float16",
        shared=pair.config.shared_unet,
        dialect=dialect,
    )


def write_graph(
    graph: Graph,
    folder: Path,
    *,
    half: bool = False,
    shared: bool = False,
    dialect: Dialect = "portable",
) -> Path:
    """Write a graph whose modules are at hand; see `export_graph`.

    Args:
        graph: What to write.
        folder: Holds the weights.
        half: The modules are float16.
        shared: Both U-Nets have the weights in `base_unet`.
        dialect: What it is written for.
    """
    stored = _stored_parameters(graph, folder, shared=shared)
    model = _translate(graph, dialect)
    _optimizer.optimize_ir(model, should_fold=lambda node: _may_fold(node, stored))
    _drop_traces(model)
    _point_to_files(model, stored, folder)
    if dialect != "portable" and graph.merge is not None:
        _drop_shapes(model)  # of steps, of which a bundle has many
    model.metadata_props[METADATA_KEY] = json.dumps(_metadata(graph, half))
    model.producer_name, model.producer_version = "bootpig_rt", __version__
    model.graph.name = graph.name
    name_attention(model)
    model.opset_imports[""] = OPSETS[dialect]
    if dialect == "cpu-large":
        model.opset_imports[ORT_DOMAIN] = 1
    proto = ir.to_proto(model)
    if graph.merge is not None:
        proto.functions.append(function_body(graph.merge, half=half, dialect=dialect))
        if dialect != "portable":  # kernels of ours take the place of the function elsewhere
            proto = inliner.inline_local_functions(proto)
    path = folder / f"{graph.name}.onnx"
    atomic_write_bytes(path, proto.SerializeToString())
    return path


def _of_type(pair: Pair, dtype: torch.dtype) -> Pair:
    """The pair with modules of a type; those that have it already are not copied."""

    def convert(module: Any) -> Any:
        if next(module.parameters()).dtype == dtype:
            return module
        return nn.Module.to(copy.deepcopy(module), dtype)  # diffusers' own `to` logs advice

    base = convert(pair.base.unet)
    reference = base if pair.reference.unet is pair.base.unet else convert(pair.reference.unet)
    return replace(
        pair,
        base=BaseUNet(base).eval(),
        reference=ReferenceUNet(reference).eval(),
        vae=nn.Module.to(pair.vae, torch.float32) if pair.keeps_vae_wide else convert(pair.vae),
        text_encoder=convert(pair.text_encoder),
        tiny_vae=None if pair.tiny_vae is None else convert(pair.tiny_vae),
        controls=_controls_of(pair, convert),
    )


def _for_cpu(pair: Pair) -> Pair:
    """The pair with modules that ONNX Runtime runs well; no parameter is copied."""
    base = for_cpu(pair.base.unet)
    reference = base if pair.reference.unet is pair.base.unet else for_cpu(pair.reference.unet)
    return replace(
        pair,
        base=BaseUNet(base).eval(),
        reference=ReferenceUNet(reference).eval(),
        controls=_controls_of(pair, for_cpu),
    )


def _controls_of(pair: Pair, change: Callable[[Any], Any]) -> tuple[PairControl, ...]:
    return tuple(
        replace(control, net=Control(change(control.net.unet)).eval()) for control in pair.controls
    )


def _stored_parameters(graph: Graph, folder: Path, *, shared: bool) -> dict[str, StoredTensor]:
    """Where each parameter of a traced module is stored, by its full name."""
    stored: dict[str, StoredTensor] = {}
    for attribute, child in graph.module.named_children():
        prefix = f"{attribute}."
        owner: Any = child
        part = _PARTS.get(attribute, f"{CONTROL_PREFIX}{graph.control}")
        if attribute in ("base", "reference", "control"):
            prefix, owner = f"{attribute}.unet.", owner.unet
            part = "base_unet" if shared and attribute != "control" else part
        owners = {prefix: (part, owner)}
        if isinstance(owner, TwoTextEncoders):
            owners = {
                f"{prefix}first.": (part, owner.first),
                f"{prefix}second.": (TEXT_ENCODER_2, owner.second),
            }
        for prefix, (part, owner) in owners.items():
            for name, tensor in find_weights(folder, part, owner).items():
                stored[prefix + name] = tensor
    return stored


def _translate(graph: Graph, dialect: Dialect) -> Any:
    """Trace and translate, without optimisations."""
    names = list(graph.inputs)
    axes: list[Any] = [graph.axes.get(name) for name in names]
    parameters = inspect.signature(graph.module.forward).parameters.values()
    fixed = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    if fixed < len(parameters):  # texts and table are one variadic argument
        axes = [*axes[:fixed], tuple(axes[fixed:])]
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                graph.module, tuple(graph.inputs.values()), dynamic_shapes=tuple(axes), strict=False
            )
            exported = torch.onnx.export(
                program,
                input_names=names,
                output_names=list(graph.outputs),
                custom_translation_table=translations(dialect),
                opset_version=OPSETS["portable"],  # what is newer is `Attention` alone
                optimize=False,
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:  # all that torch's exporters raise
        reason = " ".join(str(error).split())[:300]
        raise EngineError(
            f"torch {torch.__version__} cannot export the graph {graph.name}: {reason}; "
            "install the versions of constraints.txt"
        ) from error
    assert exported is not None
    return exported.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about themselves off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _may_fold(node: ir.Node, stored: dict[str, StoredTensor]) -> bool | None:
    """Never fold what comes from the pair's weights: that would store them a second time."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name in stored:
            return False
    return None


def _drop_traces(model: ir.Model) -> None:
    """Leave out where each node came from: call stacks with paths, most of the file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _drop_shapes(model: ir.Model) -> None:
    """Leave out shapes between nodes, a fifth of the file: ONNX Runtime finds them itself."""
    outputs = set(map(id, model.graph.outputs))
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.shape = value.type = None


def _point_to_files(model: ir.Model, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Replace weights by external data, and drop those that no node reads."""
    graph = model.graph
    front: list[ir.Node] = []
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
            continue
        tensor = value.const_value
        assert tensor is not None
        if name not in stored:
            if tensor.nbytes > _LARGEST_EMBEDDED_BYTES:
                raise EngineError(
                    f"the graph {graph.name} holds the constant {name!r} of {tensor.nbytes} bytes, "
                    f"expected at most {_LARGEST_EMBEDDED_BYTES} beside the pair's weights; "
                    "report it with the pair's config.json files"
                )
            continue
        place = stored[name]
        dtype, shape = tensor.dtype, tuple(tensor.shape.numpy())
        external = ir.ExternalTensor(
            place.location,
            place.offset,
            place.length,
            _IR_TYPES[place.dtype],
            shape=ir.Shape(place.shape),
            name=name,
            base_dir=folder,
        )
        if external.dtype == dtype and place.shape == shape:
            value.const_value = external
            continue
        del graph.initializers[name]
        file_value = ir.Value(
            name=name,
            shape=external.shape,
            type=ir.TensorType(external.dtype),
            const_value=external,
        )
        graph.initializers[name] = file_value
        current = file_value
        value.name = f"{name}.used"
        if place.shape != shape:  # a 1 x 1 convolution in the file, a linear layer today
            target = ir.Value(
                name=f"{name}.shape", const_value=ir.tensor(list(shape), name=f"{name}.shape")
            )
            graph.initializers[f"{name}.shape"] = target
            front.append(ir.node("Reshape", [current, target]))
            current = front[-1].outputs[0]
            current.name = f"{name}.reshaped"
        if external.dtype != dtype:
            front.append(ir.node("Cast", [current], {"to": dtype.value}))
            current = front[-1].outputs[0]
        current.name, current.type, current.shape = f"{name}.used", value.type, value.shape
        ir.convenience.replace_all_uses_with(value, current)
    graph.insert_before(graph[0], front)


_IR_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float64: ir.DataType.DOUBLE,
}


def _metadata(graph: Graph, half: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "graph": graph.name,
        "precision": "float16" if half else "float32",
        "merge": graph.merge,
    }
    base: Any = getattr(graph.module, "base", None)
    if base is not None:
        # Of each self-attention: heads, head dim, and how often latents were halved before it.
        values["layers"] = [
            [heads, inner // heads, level]
            for (_, heads, inner), level in zip(
                base.layer_shapes(), base.layer_levels(), strict=True
            )
        ]
    return values
