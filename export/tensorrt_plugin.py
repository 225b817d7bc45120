"""The operator `bootpig_rt::ReferenceAttention` as a quick-deploy plugin of TensorRT.

Ahead of time: the plan holds the kernel's PTX and runs without Python, Triton or this package. Each
tile configuration is a tactic, and TensorRT times them while it builds. Where no plugin is
registered the operator's body of standard operators runs instead (`reference_op`), as it does for
merges that compare references after the output projection: those are more than one launch.

The decisions are plain functions of shapes (`Tensors` in, `Launch` out), so that they are tested
without TensorRT; `register` hands them to `tensorrt.plugin`, which TensorRT has since 10.9 and
TensorRT-RTX has not.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, helper

from bootpig_rt.backends.cuda.devices import CudaDevice
from bootpig_rt.backends.tensorrt.flavours import Flavour
from bootpig_rt.errors import BackendUnavailable, ParameterError
from bootpig_rt.export.onnx_export import METADATA_KEY
from bootpig_rt.export.reference_op import DOMAIN, OP_TYPE
from bootpig_rt.kernels import checks
from bootpig_rt.kernels.compile import SHARED_LIMIT, Compiled, compile_one, without_hidden_pointers
from bootpig_rt.kernels.plugin_numbers import PLUGIN_NUMBERS
from bootpig_rt.kernels.tiles import Tile
from bootpig_rt.kernels.toolchain import require_triton
from bootpig_rt.kernels.variants import plugin_variant

PLUGIN_ID = f"{DOMAIN}::{OP_TYPE}"
MERGES = ("one", "concat")
"""Merges that are one launch; `one` is what graphs for a single reference have."""

TACTICS = (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2))
"""Tactic 1, 2, 3. Small enough for the 48 KiB that a kernel gets without asking the driver."""

SHARED_WITHOUT_ASKING = 48 * 1024

DTYPES = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32"}
"""Names of `tensorrt.DataType` and what the kernels call them."""

INPUTS = ("q", "k", "v", "ref_k", "ref_v", "ref_of_row")


@dataclass(frozen=True)
class Launch:
    """What a plan needs to launch the kernel.

    Attributes:
        entry: Name of the function in the PTX.
        ptx: Its parameters are the inputs, the numbers, the output, and no more.
        grid: Programs along x, y and z; numbers, or expressions of a symbolic shape.
        threads: Of one program.
        shared_bytes: Of one program.
        numbers: Whole numbers between inputs and outputs.
    """

    entry: str
    ptx: str
    grid: tuple[Any, Any, Any]
    threads: int
    shared_bytes: int
    numbers: tuple[Any, ...]


def supports(merge: str) -> bool:
    """The plugin computes this merge; a graph with another keeps the operator's body."""
    return merge in MERGES


def check_inputs(dtypes: Sequence[str], head_dim: int) -> str:
    """The kernel's name for the type of the six inputs, which have `tensorrt.DataType`'s names.

    Raises:
        ParameterError: A type or a head dim that the kernel does not take.
    """
    *floats, index = dtypes
    if len(set(floats)) != 1 or floats[0] not in DTYPES or index != "INT64":
        raise ParameterError(
            f"{PLUGIN_ID} got {', '.join(dtypes)}, expected one of {', '.join(DTYPES)} five times "
            "and INT64; export the graph in one float type"
        )
    if not checks.supports_head_dim(head_dim):
        raise ParameterError(
            f"{PLUGIN_ID} got head dim {head_dim}, expected {checks.MIN_HEAD_DIM} to "
            f"{checks.MAX_HEAD_DIM} in steps of {checks.HEAD_DIM_MULTIPLE}; build without the "
            "plugin"
        )
    return DTYPES[floats[0]]


def tactics(*, architecture: int, dtype: str, head_dim: int, scale: float) -> list[int]:
    """Numbers of the tactics that fit: no spills, and no more shared memory than is given unasked.

    Raises:
        ParameterError: An architecture that the kernels are not made for.
        BackendUnavailable: No tactic fits, or Triton is missing or too old.
    """
    if architecture not in SHARED_LIMIT:
        known = ", ".join(f"sm_{number}" for number in SHARED_LIMIT)
        raise ParameterError(f"the GPU is sm_{architecture}, expected one of {known}")
    fitting = []
    for number in range(1, len(TACTICS) + 1):
        resources = _compiled(number, architecture, dtype, head_dim, scale).resources
        if resources.shared_bytes <= SHARED_WITHOUT_ASKING and not resources.spills:
            fitting.append(number)
    if not fitting:
        raise BackendUnavailable(
            f"no tactic of {PLUGIN_ID} fits sm_{architecture} in {dtype} with head dim {head_dim}; "
            "build without the plugin"
        )
    return fitting


def launch(
    tactic: int,
    shapes: Sequence[Sequence[Any]],
    *,
    architecture: int,
    dtype: str,
    head_dim: int,
    scale: float,
    divide_up: Callable[[Any, int], Any],
) -> Launch:
    """The kernel of one tactic and how it is launched for inputs of these shapes.

    Shapes, in the order of `INPUTS`, are numbers or symbolic expressions; `divide_up` divides such
    a one by a number, rounded up. `tactic` counts from 1, `architecture` is 90 for 9.0.
    """
    compiled = _compiled(tactic, architecture, dtype, head_dim, scale)
    rows, heads, tokens = shapes[0][:3]
    return Launch(
        entry=compiled.entry,
        ptx=without_hidden_pointers(compiled.ptx, compiled.entry, compiled.hidden_pointers),
        grid=(divide_up(tokens, TACTICS[tactic - 1].block_m), heads, rows),
        threads=compiled.num_threads,
        shared_bytes=compiled.resources.shared_bytes,
        numbers=tuple(shapes[source][dim] for _, source, dim in PLUGIN_NUMBERS),
    )


@functools.cache
def _compiled(tactic: int, architecture: int, dtype: str, head_dim: int, scale: float) -> Compiled:
    return compile_one(
        plugin_variant(
            architecture=architecture,
            dtype=dtype,
            head_dim=head_dim,
            scale=scale,
            tile=TACTICS[tactic - 1],
        )
    )


@dataclass(frozen=True)
class Capability:
    """Whether a build has the plugin.

    Attributes:
        architecture: Compute capability that its kernels are for; None without the plugin.
        reason: Why it is not there; empty with it.
    """

    architecture: int | None
    reason: str = ""

    @property
    def is_there(self) -> bool:
        """Graphs whose merge the plugin supports are built with it."""
        return self.architecture is not None

    def __str__(self) -> str:
        """For reports and the log."""
        if self.is_there:
            return f"plugin {PLUGIN_ID} for sm_{self.architecture}"
        return f"the operator's body, without a plugin: {self.reason}"


def capability(
    flavour: Flavour, devices: Sequence[CudaDevice], *, is_wanted: bool = True, plugin: Any = None
) -> Capability:
    """Register the plugin where a build can have it; once in a process.

    TensorRT builds for the first of the devices. `plugin` is the module `tensorrt.plugin`, imported
    by default.
    """
    if not flavour.has_plugins:
        return Capability(None, f"{flavour.name} has no ahead-of-time plugins")
    if not is_wanted:
        return Capability(None, "it was not asked for")
    if not devices:
        return Capability(None, "there is no GPU whose kernels it could hold")
    architecture = int(devices[0].architecture.removeprefix("sm_"))
    if architecture not in SHARED_LIMIT:
        return Capability(None, f"there are no kernels for sm_{architecture}")
    try:
        require_triton()
        _register_once(architecture, plugin)
    except BackendUnavailable as error:
        return Capability(None, str(error))
    return Capability(architecture)


_registered: dict[int, int] = {}
"""Identity of a module `tensorrt.plugin` -> the architecture that it knows the plugin for."""


def _register_once(architecture: int, plugin: Any) -> None:
    trtp = _plugin_module() if plugin is None else plugin
    known = _registered.get(id(trtp))
    if known is not None and known != architecture:
        raise BackendUnavailable(
            f"this process has registered the plugin for sm_{known}, and cannot for "
            f"sm_{architecture}; build for each GPU in a process of its own"
        )
    if known is None:
        register(architecture, plugin=trtp)
        _registered[id(trtp)] = architecture


def use_plugin(model: ModelProto) -> str:
    """Have TensorRT's parser take the plugin for a graph's reference attentions, in place.

    Their nodes get the attributes that it looks a plugin up by, and the operator's body is taken
    out, so that there is one way to read them. A graph with a merge or a head dim that the plugin
    does not support stays as it is.

    Returns:
        Why the graph stays as it is; empty if its nodes are the plugin's now.
    """
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    merges = {
        helper.get_attribute_value(attribute).decode()
        for node in nodes
        for attribute in node.attribute
        if attribute.name == "merge"
    }
    if not nodes or not all(map(supports, merges)):
        return "it does not compute this merge"
    too_odd = [dim for dim in _head_dims(model) if not checks.supports_head_dim(dim)]
    if too_odd:
        return (
            f"it takes head dims {checks.MIN_HEAD_DIM} to {checks.MAX_HEAD_DIM} in steps of "
            f"{checks.HEAD_DIM_MULTIPLE}, and a layer has {too_odd[0]}"
        )
    for node in nodes:
        for name, value in (("plugin_namespace", DOMAIN), ("plugin_version", "1"), ("aot", 1)):
            node.attribute.append(helper.make_attribute(name, value))
    bodies = [body for body in model.functions if (body.domain, body.name) != (DOMAIN, OP_TYPE)]
    del model.functions[:]
    model.functions.extend(bodies)
    return ""


def _head_dims(model: ModelProto) -> list[int]:
    """D of each reference attention, from the metadata that the exporter writes."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return [int(dim) for _, dim, _ in json.loads(entry.value).get("layers", [])]
    return []


_given: list[set[str]] = []


@contextlib.contextmanager
def kernels_given() -> Iterator[set[str]]:
    """Collect the sha256 of each PTX that TensorRT is given while the block runs."""
    given: set[str] = set()
    _given.append(given)
    try:
        yield given
    finally:
        _given.pop()


def register(architecture: int, *, plugin: Any = None) -> None:
    """Make the plugin known to TensorRT, for graphs whose merge it `supports`.

    Call it once, ahead of parsing a graph, as `capability` does. A plan built then holds PTX for
    `architecture` alone.

    Raises:
        BackendUnavailable: TensorRT is not installed or has no ahead-of-time plugins.
    """
    trtp = _plugin_module() if plugin is None else plugin
    if not hasattr(trtp, "aot_impl"):
        raise BackendUnavailable(
            "this TensorRT has no ahead-of-time plugins, expected 10.9 or newer; pip install "
            "--upgrade tensorrt, or build without the plugin"
        )
    desc = trtp.TensorDesc

    def describe(q, k, v, ref_k, ref_v, ref_of_row, merge, scale):  # type: ignore[no-untyped-def]
        if not supports(merge):
            raise ParameterError(
                f"{PLUGIN_ID} got merge {merge!r}, expected {' or '.join(MERGES)}; build graphs "
                "with other merges without the plugin"
            )
        check_inputs(_dtypes(q, k, v, ref_k, ref_v, ref_of_row), int(q.shape[3]))
        return q.like()

    def choose(q, k, v, ref_k, ref_v, ref_of_row, scale, outputs):  # type: ignore[no-untyped-def]
        inputs = (q, k, v, ref_k, ref_v, ref_of_row)
        head_dim = int(q.shape[3])
        dtype = check_inputs(_dtypes(*inputs), head_dim)
        numbers = tactics(
            architecture=architecture, dtype=dtype, head_dim=head_dim, scale=float(scale)
        )
        name = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}[dtype]
        types = ", ".join([name] * 5 + ["INT64", name])
        return [trtp.AutoTuneCombination(types, "LINEAR", numbers)]

    def implement(  # type: ignore[no-untyped-def]
        q, k, v, ref_k, ref_v, ref_of_row, scale, outputs, tactic
    ):
        inputs = (q, k, v, ref_k, ref_v, ref_of_row)
        head_dim = int(q.shape[3])
        made = launch(
            int(tactic),
            [tensor.shape_expr for tensor in inputs],
            architecture=architecture,
            dtype=check_inputs(_dtypes(*inputs), head_dim),
            head_dim=head_dim,
            scale=float(scale),
            divide_up=trtp.cdiv,
        )
        for given in _given:
            given.add(hashlib.sha256(made.ptx.encode()).hexdigest())
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = made.grid
        parameters.block_x = made.threads
        parameters.shared_mem = made.shared_bytes
        numbers = trtp.SymIntExprs(len(made.numbers))
        for index, number in enumerate(made.numbers):
            numbers[index] = trtp.SymInt32(number)
        return made.entry, made.ptx, parameters, numbers

    # TensorRT reads the annotations: they are its own classes, known only here.
    tensors = dict.fromkeys(INPUTS, desc)
    describe.__annotations__ = {**tensors, "merge": str, "scale": float, "return": desc}
    choose.__annotations__ = {**tensors, "scale": float}
    implement.__annotations__ = {**tensors, "scale": float}
    trtp.register(PLUGIN_ID)(describe)
    trtp.autotune(PLUGIN_ID)(choose)
    trtp.aot_impl(PLUGIN_ID)(implement)


def _dtypes(*tensors: Any) -> list[str]:
    """Names of `tensorrt.DataType`."""
    return [str(tensor.dtype).rpartition(".")[2] for tensor in tensors]


def _plugin_module() -> Any:
    try:
        return importlib.import_module("tensorrt.plugin")
    except ImportError as error:
        raise BackendUnavailable(
            f"tensorrt.plugin cannot be imported ({error}), it comes with TensorRT 10.9 or newer; "
            "pip install --upgrade tensorrt"
        ) from error
