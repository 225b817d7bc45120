"""The two TensorRTs as one table: what each can do, and how it is installed.

TensorRT-RTX builds for a named compute capability on a machine without a GPU and finishes the
kernels when an engine is first loaded. The full TensorRT times kernels on the GPU that it builds
for. Their Python interfaces are otherwise the same, so a builder or a backend asks this table and
never tries and catches.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from bootpig_rt.errors import BackendUnavailable, ParameterError

LOCAL = "local"
"""The target of the full TensorRT: the GPU of this machine."""


@dataclass(frozen=True)
class Flavour:
    """What one TensorRT can do.

    Attributes:
        name: Shown to users.
        package: Import name.
        install: The command that installs it.
        targets: Values of `--target` that it builds.
        needs_gpu_to_build: It times kernels on the GPU while it builds.
        names_target: A build sets the compute capability that it is for.
        has_plugins: Kernels of ours can take the place of an operator (`package.plugin`).
        keeps_kernel_source: Plans hold the text of generated kernels, which says what an attention
            sums its scores in.
        compiles_at_load: Kernels are finished each time an engine is loaded.
    """

    name: str
    package: str
    install: str
    targets: tuple[str, ...]
    needs_gpu_to_build: bool
    names_target: bool
    has_plugins: bool
    keeps_kernel_source: bool
    compiles_at_load: bool

    def is_installed(self) -> bool:
        """Whether the package is there; it is not imported."""
        return importlib.util.find_spec(self.package) is not None

    def load(self) -> Any:
        """The module.

        Raises:
            BackendUnavailable: It is not installed, or its libraries do not load.
        """
        if not self.is_installed():
            raise BackendUnavailable(
                f"{self.name} is not installed; install it with: {self.install}"
            )
        try:
            return importlib.import_module(self.package)
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BackendUnavailable(
                f"{self.name} is installed but does not load ({reason}); install it again with: "
                f"{self.install}"
            ) from error


RTX = Flavour(
    name="TensorRT-RTX",
    package="tensorrt_rtx",
    install="pip install tensorrt-rtx",
    targets=("sm_75", "sm_80", "sm_86", "sm_89", "sm_120"),
    needs_gpu_to_build=False,
    names_target=True,
    has_plugins=False,
    keeps_kernel_source=True,
    compiles_at_load=True,
)

FULL = Flavour(
    name="TensorRT",
    package="tensorrt",
    install="pip install tensorrt",
    targets=(LOCAL,),
    needs_gpu_to_build=True,
    names_target=False,
    has_plugins=True,
    keeps_kernel_source=False,
    compiles_at_load=False,
)

FLAVOURS = (RTX, FULL)

TARGETS = tuple(target for flavour in FLAVOURS for target in flavour.targets)


def flavour_of(target: str) -> Flavour:
    """The TensorRT that builds and runs a target.

    Raises:
        ParameterError: No such target.
    """
    for flavour in FLAVOURS:
        if target in flavour.targets:
            return flavour
    raise ParameterError(f"target is {target!r}, expected one of: {', '.join(TARGETS)}")
