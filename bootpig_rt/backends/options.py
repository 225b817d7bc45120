"""Which backend computes the pair, and how: `Pipeline(backend=OnnxRuntimeOptions(...))`.

Nothing here imports what a backend needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from bootpig_rt.backends.host_table import PRECISIONS, Precision
from bootpig_rt.checks import check_flag, check_int, check_name


@dataclass(frozen=True)
class TorchOptions:
    """Torch, and how it computes the pair.

    Attributes:
        precision: Of weights and activations; by default float16 on CUDA and float32 on a CPU.
            Softmax, guidance, solver and latents are float32 in any case, and so is an autoencoder
            whose configuration says `force_upcast`. Convolutions in float32 on CUDA follow
            `torch.backends.cudnn.allow_tf32`, which torch turns on.
        cuda_graph: Keep buffers for each shape, and record what runs over them once, to replay it
            for every step and call: by default on CUDA. On a CPU True uses the same buffers, and
            recording is nothing but a call.
        channels_last: Keep pictures inside the convolutions as height, width, channels, which is
            what tensor cores read: by default on CUDA.
        joined_products: Queries, keys and values of a self-attention as one product, and the time
            embeddings of all blocks as another: fewer launches. Off until it was measured.
        graphs_kept: Recordings of each kind that are kept, least recently used out first. Sizes are
            rounded up, so that a stream of mixed requests needs about a dozen.

    Raises:
        ParameterError: A value is unknown, of the wrong type or out of range.
    """

    name: ClassVar[str] = "torch"

    precision: Precision | None = None
    cuda_graph: bool | None = None
    channels_last: bool | None = None
    joined_products: bool = False
    graphs_kept: int = 32

    def __post_init__(self) -> None:
        """Check every field."""
        if self.precision is not None:
            check_name("backend option precision", self.precision, PRECISIONS)
        for name in ("cuda_graph", "channels_last"):
            if getattr(self, name) is not None:
                check_flag(f"backend option {name}", getattr(self, name))
        check_flag("backend option joined_products", self.joined_products)
        check_int("backend option graphs_kept", self.graphs_kept, 1, 1024)

    def on(self, device: str) -> TorchOptions:
        """The same with the defaults of a device filled in."""
        is_cuda = device.startswith("cuda")
        return replace(
            self,
            precision=self.precision or ("float16" if is_cuda else "float32"),
            cuda_graph=is_cuda if self.cuda_graph is None else self.cuda_graph,
            channels_last=is_cuda if self.channels_last is None else self.channels_last,
        )


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """ONNX Runtime, and how its sessions use the machine.

    Attributes:
        intra_op_threads: Threads of one graph; 0 is one for each physical core.
        spinning: Threads that wait within a launch stay awake for a while: quicker on an idle
            machine, slower and hotter on a busy one.
        arena: Keep memory between launches instead of returning it.
        portable: Leave out optimisations that depend on the CPU's vector width: numbers then differ
            less from machine to machine, and steps take about a tenth longer.
        cuda_memory_bytes: Most memory that ONNX Runtime takes on a CUDA device; 0 is no limit.
        sessions_kept: Graphs that stay loaded, least recently used out first; 0 keeps all. 1 needs
            the least memory and loads a graph each time that another one ran before.

    Raises:
        ParameterError: A value is of the wrong type or out of range.
    """

    name: ClassVar[str] = "onnxruntime"

    intra_op_threads: int = 0
    spinning: bool = True
    arena: bool = True
    portable: bool = False
    cuda_memory_bytes: int = 0
    sessions_kept: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name, most in (
            ("intra_op_threads", 1024),
            ("cuda_memory_bytes", 1 << 50),
            ("sessions_kept", 1024),
        ):
            value = getattr(self, name)
            check_int(f"backend option {name}", value, 0, most, "0 leaves it to ONNX Runtime")
        for name in ("spinning", "arena", "portable"):
            check_flag(f"backend option {name}", getattr(self, name))


@dataclass(frozen=True)
class TensorRTOptions:
    """TensorRT; the build of a bundle decides the rest."""

    name: ClassVar[str] = "tensorrt"


BackendOptions: TypeAlias = TorchOptions | OnnxRuntimeOptions | TensorRTOptions
