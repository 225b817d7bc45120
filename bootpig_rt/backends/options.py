"""Which backend computes the pair, and how: `Pipeline(backend=OnnxRuntimeOptions(...))`.

Nothing here imports what a backend needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, get_args

from bootpig_rt.backends.host_table import PRECISIONS, Precision
from bootpig_rt.bundle.control import ControlFolder
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.checks import check_flag, check_int, check_name
from bootpig_rt.errors import ParameterError


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
        loras: Fused into the weights while they are loaded; `PairOptions(lora=...)` fills them in.
        controls: Beside those of the pair's folder; `PairOptions(controls=...)` fills them in.

    Raises:
        ParameterError: A value is unknown, of the wrong type or out of range.
    """

    name: ClassVar[str] = "torch"

    precision: Precision | None = None
    cuda_graph: bool | None = None
    channels_last: bool | None = None
    joined_products: bool = False
    graphs_kept: int = 32
    loras: tuple[Lora, ...] = ()
    controls: tuple[ControlFolder, ...] = ()

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
        fold_constants: Compute what depends on weights alone once, when a graph is loaded. On a CPU
            weights in float16 are then kept in float32, and twice over while the graph loads;
            without it each launch widens them, which takes less memory and time in each launch.

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
    fold_constants: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        for name, most in (
            ("intra_op_threads", 1024),
            ("cuda_memory_bytes", 1 << 50),
            ("sessions_kept", 1024),
        ):
            value = getattr(self, name)
            check_int(f"backend option {name}", value, 0, most, "0 leaves it to ONNX Runtime")
        for name in ("spinning", "arena", "portable", "fold_constants"):
            check_flag(f"backend option {name}", getattr(self, name))


@dataclass(frozen=True)
class TensorRTOptions:
    """TensorRT; the build of a bundle decides the rest."""

    name: ClassVar[str] = "tensorrt"


OpenVINOPrecision: TypeAlias = Literal["auto", "float32", "bfloat16", "int8"]
"""What OpenVINO computes a bundle in; `auto` is what the processor runs quickest."""

OPENVINO_PRECISIONS: tuple[OpenVINOPrecision, ...] = get_args(OpenVINOPrecision)

FLOAT32_GRAPHS: dict[str, tuple[str, ...]] = {
    "bfloat16": ("reference_kv",),
    "int8": ("reference_kv",),
}
"""Graphs that OpenVINO computes in float32 where the rest is narrower, by measurement.

The gate of a bundle for OpenVINO may find that a pair needs none of them. In bfloat16 the middle of
the shipped pair's Reference U-Net loses 9 % of its keys and values, where all else loses 0.1 to
4 %. A table is made once for a subject, and every step of every picture of it reads what it lost.
The table itself is kept in the narrow type.
"""


@dataclass(frozen=True)
class OpenVINOOptions:
    """OpenVINO, and how it uses the machine.

    Attributes:
        precision: Of the arithmetic. `auto` takes what this processor runs quickest among those
            that are near enough to torch, and a log line says which.
        threads: Of one launch; 0 is one for each core.
        streams: Launches of a batch, or pictures that are decoded, that run at once and share the
            threads; 0: one for each thread where the pair is small, 8 at most, else one. Above 1
            models are compiled once more for it, and one picture still has all threads.
        buckets: Numbers of pictures that models of fixed shapes are made for, which are about a
            third quicker and take memory and a second or more to compile. Pictures of the pair's
            own size with one reference or none are launched in groups of these numbers, one by one
            by default, so that a picture is the same in any company; all others share launches and
            a model of free shapes. Empty: there are none of fixed shapes, of any graph.
        models_kept: Compiled models that stay loaded, least recently used out first; 0 keeps all
            that the host's memory has room for. 1 needs the least memory and loads a graph each
            time that another one ran before.
        cache: Keep compiled models in files. They are left out where a pair has over 1 GiB of
            weights, which each would hold once more.
        cache_folder: Where; by default `.openvino` in the bundle's folder, or
            `~/.cache/bootpig-rt/openvino` where that is read-only.
        float32_graphs: Graphs that are computed in float32 in a narrower precision too; None: as
            the parity gate of the bundle found, else those of `FLOAT32_GRAPHS`.

    Raises:
        ParameterError: A value is unknown, of the wrong type or out of range.
    """

    name: ClassVar[str] = "openvino"

    precision: OpenVINOPrecision = "auto"
    threads: int = 0
    streams: int = 0
    buckets: tuple[int, ...] = (1,)
    models_kept: int = 0
    cache: bool = True
    cache_folder: str | Path | None = None
    float32_graphs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_name("backend option precision", self.precision, OPENVINO_PRECISIONS)
        if not isinstance(self.float32_graphs, tuple | None):
            raise ParameterError(
                f"backend option float32_graphs is {self.float32_graphs!r}, expected names of "
                'graphs such as ("reference_kv",)'
            )
        check_int("backend option threads", self.threads, 0, 1024, "0 leaves it to OpenVINO")
        check_int("backend option streams", self.streams, 0, 1024, "0 leaves it to the pair")
        check_int("backend option models_kept", self.models_kept, 0, 1024, "0 keeps all that fit")
        check_flag("backend option cache", self.cache)
        if not isinstance(self.buckets, tuple):
            raise ParameterError(
                f"backend option buckets is {self.buckets!r}, expected numbers of pictures such as "
                "(1, 4)"
            )
        for count in self.buckets:
            check_int("backend option buckets", count, 1, 1024, "numbers of pictures of a batch")
        if not isinstance(self.cache_folder, (str, Path, type(None))):
            raise ParameterError(
                f"backend option cache_folder is {self.cache_folder!r}, expected a folder"
            )


BackendOptions: TypeAlias = TorchOptions | OnnxRuntimeOptions | OpenVINOOptions | TensorRTOptions
