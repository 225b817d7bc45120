"""One ONNX graph -> one TensorRT engine, in either TensorRT, for a GPU that need not be here.

Networks are strongly typed: the graph says in which precision each operator runs. What the two
TensorRTs differ in is asked of `Flavour`. This file knows graphs by name and shapes by
`tensorrt_profiles`, and nothing of bundles.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, load_model

from bootpig_rt.backends.cuda.devices import cuda_devices
from bootpig_rt.backends.tensorrt.flavours import Flavour, flavour_of
from bootpig_rt.errors import BackendUnavailable, CheckpointError, EngineError
from bootpig_rt.export.reference_op import DOMAIN
from bootpig_rt.export.tensorrt_attention import cast_behind_scores
from bootpig_rt.export.tensorrt_layers import (
    LAYERS_MESSAGE,
    MEMORY_MESSAGE,
    Layer,
    LayerReport,
    layer_report,
    parse_layers,
)
from bootpig_rt.export.tensorrt_plugin import Capability, capability, kernels_given, use_plugin
from bootpig_rt.export.tensorrt_profiles import ShapeRange, input_ranges, pair_shape
from bootpig_rt.files.atomic import atomic_write

if TYPE_CHECKING:
    from bootpig_rt.bundle.bundle import Profile
from bootpig_rt.export.tensorrt_progress import Progress, make_monitor

logger = logging.getLogger(__name__)


_JOIN_SECONDS = 0.2
_WORKSPACE_BYTES = 4 << 30


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Attributes:
        graph: Name of the graph.
        target: `sm_89` and so on, or `local`.
        runtime: Import name of the TensorRT that built it and that can run it.
        runtime_version: Its version; an engine runs with exactly this one.
        size_bytes: Of the engine's file, weights included.
        activation_bytes: Device memory of one launch at the largest shapes; None where the builder
            did not say.
        seconds: Of parsing and building.
        inputs: Name -> least, usual and largest shape.
        layers: What became of the graph.
        attention: What computes the reference attentions; empty where the graph has none.
        architecture: Of the GPU that it is for, `sm_89`.
        kernels: sha256 of each text of ours that TensorRT was given as a kernel, sorted.
    """

    graph: str
    target: str
    runtime: str
    runtime_version: str
    size_bytes: int
    activation_bytes: int | None
    seconds: float
    inputs: dict[str, ShapeRange]
    layers: LayerReport
    attention: str = ""
    architecture: str | None = None
    kernels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For json: shapes by the names of `ShapeRange`."""
        values = asdict(self)
        values["inputs"] = {name: shape._asdict() for name, shape in self.inputs.items()}
        return values


def build_trt_engine(
    onnx: Path,
    engine: Path,
    *,
    sm: str,
    profile: Profile,
    plugin: bool = True,
    progress: Progress | None = None,
) -> EngineReport:
    """Build one graph and write its engine, all of it or nothing.

    The graph lies in the folder of its pair, whose configurations say what sizes an open axis may
    have. Ctrl-C ends a build within seconds.

    Args:
        onnx: The graph; its name without `.onnx` is that of the graph.
        engine: The file to make. Its folder must exist.
        sm: `sm_75|sm_80|sm_86|sm_89|sm_120` or `local`.
        profile: Sizes that the engine must take.
        plugin: Where this TensorRT takes kernels of ours (see `tensorrt_plugin.capability`), use
            them for the reference attention.
        progress: Called from the thread that builds.

    Raises:
        ParameterError: Unknown target, or a graph with inputs that its interface does not name.
        BackendUnavailable: The TensorRT of this target is not installed, or its GPU is missing.
        CheckpointError: The graph cannot be read or holds what TensorRT does not take.
        EngineError: The build failed, or an attention would overflow.
        StorageError: The engine cannot be written.
    """
    flavour = flavour_of(sm)
    trt = flavour.load()
    if not onnx.is_file():
        raise CheckpointError(f"graph {onnx} is missing; export the pair again", onnx)
    start = time.monotonic()
    devices = cuda_devices()
    attention = capability(flavour, devices, is_wanted=plugin)
    shape = pair_shape(onnx.parent)
    moves_casts = True
    while True:
        log = _make_log(trt)
        build = _Build(trt, flavour, log)
        num_moved = build.parse(onnx, attention, moves_casts=moves_casts)
        shapes = input_ranges(onnx.stem, build.inputs(), profile=profile, shape=shape)
        build.configure(sm, shapes)
        with kernels_given() as kernels:
            plan = build.run(onnx.stem, progress)
        view = memoryview(plan)
        layers = layer_report(log.layers, view)
        if not (num_moved and layers.unfused_half_scores):
            break
        logger.info(
            "%s: %d attentions are not fused; building it again with their scores in float32",
            onnx.stem,
            layers.unfused_half_scores,
        )
        moves_casts = False
    if layers.half_scores:
        raise EngineError(
            f"{flavour.name} {trt.__version__} sums the scores of {layers.half_scores} attentions "
            f"of {onnx.stem} in float16, which overflows with the weights of Stable Diffusion 2.1; "
            "use another version, or build with --precision float32"
        )
    if flavour.keeps_kernel_source and layers.fused_attentions and not layers.score_types:
        logger.warning(
            "%s: %s %s does not say in which type its fused attentions sum scores",
            onnx.stem,
            flavour.name,
            trt.__version__,
        )
    with atomic_write(engine) as stream:
        stream.write(plan)
    return EngineReport(
        graph=onnx.stem,
        target=sm,
        runtime=flavour.package,
        runtime_version=str(trt.__version__),
        size_bytes=view.nbytes,
        activation_bytes=log.activation_bytes,
        seconds=round(time.monotonic() - start, 1),
        inputs=shapes,
        layers=layers,
        attention=build.attention,
        architecture=sm if flavour.names_target else devices[0].architecture if devices else None,
        kernels=tuple(sorted(kernels)),
    )


class _Build:
    """A network on its way to a plan. The builder, its log and its network live together."""

    def __init__(self, trt: Any, flavour: Flavour, log: Any) -> None:
        self._trt = trt
        self._flavour = flavour
        self._log = log
        builder = trt.Builder(log)
        if builder is None or log.lacks_gpu:
            raise BackendUnavailable(
                f"{flavour.name} needs an NVIDIA GPU and its driver to build for this machine, "
                "and found none; choose a target such as sm_89, which builds without"
            )
        self._builder = builder
        flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._network = builder.create_network(1 << int(flag))
        self._config = builder.create_builder_config()
        self.attention = ""

    def parse(self, onnx: Path, attention: Capability, *, moves_casts: bool) -> int:
        """Read the graph and the weights that it points to.

        Returns:
            How many attentions were brought into the form that TensorRT fuses, if `moves_casts`.

        Raises:
            CheckpointError: It is damaged, or has an operator that TensorRT does not take.
        """
        parser = self._trt.OnnxParser(self._network, self._log)
        try:
            model = load_model(onnx, load_external_data=False)
        except DecodeError as error:
            raise CheckpointError(
                f"{onnx} is truncated or no ONNX graph; export the pair again", onnx
            ) from error
        self._choose_attention(model, attention)
        num_moved = cast_behind_scores(model) if moves_casts else 0
        # With its path, beside which the weights lie.
        if parser.parse(model.SerializeToString(), str(onnx)):
            return num_moved
        reason = "no reason given"
        if parser.num_errors:
            first = parser.get_error(0)
            node = first.node_name() or first.node_operator()
            reason = f"{first.desc()}" + (f" at node {node!r}" if node else "")
        raise CheckpointError(
            f"{onnx}: {self._flavour.name} {self._trt.__version__} cannot read the graph "
            f"({' '.join(reason.split())[:400]}); export it again, with the opset of this version",
            onnx,
        )

    def _choose_attention(self, model: ModelProto, attention: Capability) -> None:
        """Have the plugin compute the reference attentions, or the operator's body; say which."""
        if not any(node.domain == DOMAIN for node in model.graph.node):
            return
        if attention.is_there:
            reason = use_plugin(model)
            attention = Capability(None, reason) if reason else attention
        self.attention = str(attention)
        logger.info("reference attention of %s: %s", model.graph.name, attention)

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> sizes, -1 for an open axis."""
        tensors = (self._network.get_input(i) for i in range(self._network.num_inputs))
        return {tensor.name: tuple(tensor.shape) for tensor in tensors}

    def configure(self, sm: str, shapes: dict[str, ShapeRange]) -> None:
        """Set the target and the sizes."""
        trt, config = self._trt, self._config
        if self._flavour.names_target:
            config.num_compute_capabilities = 1
            config.set_compute_capability(
                getattr(trt.ComputeCapability, sm.replace("sm_", "SM")), 0
            )
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else layers have no names
        profile = self._builder.create_optimization_profile()
        values = {
            self._network.get_input(i).name
            for i in range(self._network.num_inputs)
            if self._network.get_input(i).is_shape_tensor
        }
        for name, (least, usual, most) in shapes.items():
            if name not in values:
                profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f"{self._flavour.name} refused the sizes {shapes} ({self._log.last_error}); "
                "choose smaller ones"
            )

    def run(self, graph: str, progress: Progress | None) -> Any:
        """Build in a thread of its own, so that this one can be interrupted.

        Raises:
            EngineError: No plan came out.
        """
        monitor = make_monitor(self._trt, graph, progress)
        self._config.progress_monitor = monitor
        plans: list[Any] = []

        def work() -> None:
            plans.append(self._builder.build_serialized_network(self._network, self._config))

        thread = threading.Thread(target=work, name=f"build {graph}")
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_JOIN_SECONDS)
        except BaseException:
            monitor.is_cancelled = True
            thread.join()
            raise
        if monitor.error is not None:
            raise monitor.error
        plan = plans[0] if plans else None
        if plan is None:
            raise EngineError(
                f"{self._flavour.name} {self._trt.__version__} could not build {graph} "
                f"({self._log.last_error}); try a smaller profile or more memory, or report it"
            )
        return plan


def _make_log(trt: Any) -> Any:
    """A TensorRT log that keeps what a report needs; errors and warnings go to Python's log."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.layers: tuple[Layer, ...] = ()
            self.activation_bytes: int | None = None
            self.last_error = "no reason given"
            self.lacks_gpu = False

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(LAYERS_MESSAGE):
                self.layers = parse_layers(message)
            elif message.startswith(MEMORY_MESSAGE):
                digits = message.removeprefix(MEMORY_MESSAGE).split()[0]
                self.activation_bytes = int(digits) if digits.isdigit() else None
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = " ".join(message.split())[:300]
                self.lacks_gpu |= "no CUDA-capable device" in message or "driver" in message
                logger.debug("TensorRT: %s", message)
            elif severity == trt.ILogger.WARNING:
                logger.debug("TensorRT: %s", message)

    return Log()
