"""One TensorRT engine: its tensors, its limits, and contexts that share device memory.

The sizes are plain arithmetic over `TensorSpec`, apart from the engine, so that they can be checked
where there is no GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bootpig_rt.backends.cuda.memory import Cuda, DeviceArray, aligned
from bootpig_rt.backends.tensorrt.flavours import Flavour
from bootpig_rt.errors import BundleError, EngineError, ParameterError

# TensorRT's names of types -> numpy's. bfloat16 and the 8-bit types never cross our interfaces.
_NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor at the border of an engine.

    Attributes:
        name: In the graph.
        dtype: numpy's name of its type.
        shape: -1 for an axis that may vary.
        is_input: Read, not written.
        least: Smallest shape, for inputs.
        most: Largest shape, for inputs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool
    least: tuple[int, ...] = ()
    most: tuple[int, ...] = ()


# What to ask for when an axis is too large. By the names of inputs and their axes.
_LIMITS = {
    ("denoise_step", "state", 1): "pictures at once",
    ("denoise_step", "state", 3): "latents in height",
    ("denoise_step", "state", 4): "latents in width",
    ("denoise_step", "timesteps", 0): "steps",
    ("denoise_step", "ref_of_row", 2): "references of one subject",
    ("reference_kv", "latents", 2): "latents in height",
    ("reference_kv", "latents", 3): "latents in width",
    ("vae_encoder", "pixels", 2): "pixels in height",
    ("vae_encoder", "pixels", 3): "pixels in width",
    ("vae_decoder", "latents", 2): "latents in height",
    ("vae_decoder", "latents", 3): "latents in width",
}


def check_input(graph: str, spec: TensorSpec, shape: Sequence[int]) -> None:
    """Compare an input's shape with what the engine was built for.

    Raises:
        ParameterError: Outside; says what was asked for, the range, and how to build for more.
    """
    if len(shape) != len(spec.shape):
        raise ParameterError(
            f"{graph}: input {spec.name} has shape {list(shape)}, expected {list(spec.shape)}"
        )
    steps = ("denoise_step", "shallow_step", "controlled_step")
    kind = "denoise_step" if graph.startswith(steps) else graph
    for axis, (size, least, most) in enumerate(zip(shape, spec.least, spec.most, strict=True)):
        if not least <= size <= most:
            what = _LIMITS.get((kind, spec.name, axis), f"along axis {axis} of {spec.name}")
            raise ParameterError(
                f"{size} {what}, but the engines were built for {least} to {most}; ask for what "
                "fits, or build again with another --resolution, --max-batch, --max-references or "
                "--steps"
            )


def plan_inputs(
    graph: str, specs: Sequence[TensorSpec], given: Mapping[str, tuple[Sequence[int], str]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of one launch, checked against what the engine was built for.

    Args:
        graph: For messages.
        specs: Of the engine.
        given: Name -> shape and type. Names that the engine lacks are left out, since a graph drops
            inputs that do not change its result.

    Returns:
        Name -> shape, in the order of the engine.

    Raises:
        ParameterError: A size is outside what the engine was built for.
        EngineError: The engine reads a tensor that was not given, or one of another type.
    """
    shapes = {}
    for spec in specs:
        if not spec.is_input:
            continue
        if spec.name not in given:
            raise EngineError(
                f"engine {graph} reads {spec.name!r}, which this version does not know; "
                "build the bundle again with this version"
            )
        shape, dtype = given[spec.name]
        if np.dtype(dtype) != np.dtype(spec.dtype):
            raise EngineError(
                f"engine {graph}: input {spec.name} is {dtype}, expected {spec.dtype}; the "
                "engines are of different builds, build the bundle again"
            )
        check_input(graph, spec, shape)
        shapes[spec.name] = tuple(int(size) for size in shape)
    return shapes


def arena_bytes(engine_bytes: Sequence[int]) -> int:
    """Scratch memory that serves engines which run one after another: that of the largest."""
    return aligned(max(engine_bytes, default=0))


class Engine:
    """A deserialized engine.

    Args:
        name: Of the graph.
        plan: Its bytes, whose hash was checked.
        trt: The module of the flavour.
        flavour: Which TensorRT it is.
        runtime: `trt.Runtime`.

    Raises:
        BundleError: TensorRT does not take the plan on this machine.
        EngineError: A tensor has a type that does not cross our interfaces.
    """

    def __init__(self, name: str, plan: bytes, *, trt: Any, flavour: Flavour, runtime: Any) -> None:
        """Deserialize and read the borders."""
        self.name = name
        self._trt = trt
        self.flavour = flavour
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(
                f"{flavour.name} {trt.__version__} does not take the engine {name} on this GPU; "
                "build the bundle again for this GPU and version"
            )
        self.specs = tuple(
            self._spec(self._engine.get_tensor_name(i)) for i in range(self._engine.num_io_tensors)
        )
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._runtime_config = self._make_runtime_config()
        self._free_contexts: list[Any] = []

    def spec(self, name: str) -> TensorSpec:
        """The tensor of that name.

        Raises:
            EngineError: There is none.
        """
        for spec in self.specs:
            if spec.name == name:
                return spec
        raise EngineError(
            f"engine {self.name} has no tensor {name!r}; build the bundle again with this version"
        )

    def take_context(self, arena: DeviceArray) -> Any:
        """A context that uses the shared arena as its scratch memory.

        Making one may finish kernels, so those that were given back are used again.

        Raises:
            EngineError: TensorRT made none.
        """
        if self._free_contexts:
            return self._free_contexts.pop()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = strategy if self._runtime_config is None else self._runtime_config
        context = self._engine.create_execution_context(how)
        if context is None:
            raise EngineError(
                f"no execution context for engine {self.name}; free device memory and try again"
            )
        context.set_device_memory(arena.address, arena.nbytes)
        return context

    def give_back(self, context: Any) -> None:
        """Keep a context for the next launch."""
        self._free_contexts.append(context)

    def _make_runtime_config(self) -> Any:
        """Where kernels are finished at load: all of them ahead of the first launch, not within."""
        if not self.flavour.compiles_at_load:
            return None
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # we record the step ourselves
        return config

    def _spec(self, name: str) -> TensorSpec:
        engine = self._engine
        dtype = _NUMPY.get(engine.get_tensor_dtype(name).name)
        if dtype is None:
            raise EngineError(
                f"engine {self.name}: tensor {name!r} is {engine.get_tensor_dtype(name).name}, "
                f"expected one of {', '.join(_NUMPY)}; build the bundle again with this version"
            )
        is_input = engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        least = most = ()
        if is_input:
            least, _, most = (tuple(s) for s in engine.get_tensor_profile_shape(name, 0))
        return TensorSpec(name, dtype, tuple(engine.get_tensor_shape(name)), is_input, least, most)


class Launch:
    """A context with every address and size bound once.

    Attributes:
        outputs: Name -> array on the device, of the engine's type.
    """

    def __init__(
        self, engine: Engine, arena: DeviceArray, cuda: Cuda, *, inputs: Mapping[str, DeviceArray]
    ) -> None:
        """Check the sizes, allocate the outputs, bind all.

        Args:
            engine: What is run.
            arena: Shared scratch memory.
            cuda: Device and stream.
            inputs: Name -> array on the device, of the engine's type.

        Raises:
            ParameterError: A size is outside what the engine was built for.
            EngineError: The arrays do not fit the engine.
        """
        given = {name: (array.shape, str(array.dtype)) for name, array in inputs.items()}
        shapes = plan_inputs(engine.name, engine.specs, given)
        self._engine = engine
        self._cuda = cuda
        self._context = engine.take_context(arena)
        self._return = weakref.finalize(self, engine.give_back, self._context)
        # Bound addresses must stay valid for as long as this object lives.
        self._held = (arena, {name: inputs[name] for name in shapes})
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)
            self._context.set_tensor_address(name, inputs[name].address)
        self.outputs: dict[str, DeviceArray] = {}
        for spec in engine.specs:
            if spec.is_input:
                continue
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise EngineError(
                    f"engine {engine.name}: the size of {spec.name} does not follow from the "
                    "inputs; build the bundle again with this version"
                )
            self.outputs[spec.name] = cuda.empty(shape, spec.dtype)
            self._context.set_tensor_address(spec.name, self.outputs[spec.name].address)

    def run(self) -> None:
        """Put one launch on the stream.

        Raises:
            EngineError: TensorRT refused.
        """
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(
                f"engine {self._engine.name} could not be launched; see the log with --debug"
            )

    def is_recordable(self) -> bool:
        """Whether a launch may go into a CUDA graph."""
        if not self._engine.flavour.compiles_at_load:
            return True
        return bool(self._context.is_stream_capturable(self._cuda.stream))
