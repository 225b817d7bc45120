"""Settings of the torch backend: `Pipeline(..., backend_options={...})` takes their names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bootpig_rt.backends.host_table import PRECISIONS, Precision
from bootpig_rt.errors import ParameterError


@dataclass(frozen=True)
class TorchOptions:
    """How the pair is computed.

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
        compile: Run the U-Nets through `torch.compile`, which takes a minute for each new shape.
            On an H200 a picture took 280 ms with it and 285 ms without.
        graphs_kept: Recordings of each kind that are kept, least recently used out first.
        graph_table_bytes: A reference table up to this size is copied to a recording's own buffers
            once and then serves all steps and calls; of a larger one, each step copies its entry.
            None: a thirty-second of the device's memory.

    Raises:
        ParameterError: A value is unknown, of the wrong type or out of range.
    """

    precision: Precision | None = None
    cuda_graph: bool | None = None
    channels_last: bool | None = None
    compile: bool = False
    graphs_kept: int = 4
    graph_table_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ParameterError(
                f"backend option precision is {self.precision!r}, expected one of "
                f"{', '.join(PRECISIONS)}"
            )
        for name in ("cuda_graph", "channels_last", "compile"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name == "compile" or value is not None):
                raise ParameterError(f"backend option {name} is {value!r}, expected True or False")
        for name, least, most in (("graphs_kept", 1, 1024), ("graph_table_bytes", 0, 1 << 50)):
            value = getattr(self, name)
            if value is None and name == "graph_table_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ParameterError(
                    f"backend option {name} is {value!r}, expected a whole number {least}..{most}"
                )

    def on(self, device: str) -> TorchOptions:
        """The same with the defaults of a device filled in."""
        is_cuda = device.startswith("cuda")
        return replace(
            self,
            precision=self.precision or ("float16" if is_cuda else "float32"),
            cuda_graph=is_cuda if self.cuda_graph is None else self.cuda_graph,
            channels_last=is_cuda if self.channels_last is None else self.channels_last,
        )
