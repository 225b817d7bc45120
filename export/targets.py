"""What each target needs to be built and to be run, and whether this machine has it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

from bootpig_rt.backends.cuda.devices import CudaDevice, cuda_devices
from bootpig_rt.backends.tensorrt.flavours import flavour_of
from bootpig_rt.bundle.manifest import TARGETS
from bootpig_rt.errors import BackendUnavailable

_EXPORT_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

_MISSING_GPU = "an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class TargetStatus:
    """What can be done with a target on this machine.

    Attributes:
        target: Its name.
        missing_to_build: What is not there, in words; empty when it can be built.
        missing_to_run: What is not there, in words; empty when it can be run.
        install: Commands that install what is missing; packages only.
    """

    target: str
    missing_to_build: tuple[str, ...]
    missing_to_run: tuple[str, ...]
    install: tuple[str, ...]

    @property
    def can_build(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing_to_build

    @property
    def can_run(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing_to_run

    def to_dict(self) -> dict[str, Any]:
        """For json."""
        return {**asdict(self), "can_build": self.can_build, "can_run": self.can_run}


def target_status(target: str, devices: tuple[CudaDevice, ...] | None = None) -> TargetStatus:
    """What is missing for one target.

    Args:
        target: One of `TARGETS`.
        devices: GPUs of this machine; asked of the driver by default.
    """
    devices = cuda_devices() if devices is None else devices
    # Graphs that cannot run here are compared with torch in ONNX Runtime.
    checks_with, extra = ("openvino",) * 2 if target == "openvino" else ("onnxruntime", "cpu")
    packages = (*_EXPORT_PACKAGES, checks_with)
    build = [package for package in packages if not is_installed(package)]
    install = [f"pip install 'bootpig-rt[export,{extra}]'"] if build else []
    run: list[str] = []
    if target == "openvino":
        if not is_installed("openvino"):
            run.append("openvino")
            install.append("pip install 'bootpig-rt[openvino]'")
        return TargetStatus(target, tuple(build), tuple(run), tuple(install))
    if target in ("cpu", "cuda"):
        if not is_installed("onnxruntime"):
            run.append("onnxruntime")
            install.append(f"pip install 'bootpig-rt[{'cpu' if target == 'cpu' else 'gpu'}]'")
        if target == "cuda":
            run += [] if devices else [_MISSING_GPU]
            if not run and "CUDAExecutionProvider" not in _providers():
                run.append("onnxruntime with CUDA")
                install.append("pip uninstall onnxruntime && pip install 'bootpig-rt[gpu]'")
        return TargetStatus(target, tuple(build), tuple(run), tuple(install))
    flavour = flavour_of(target)
    if not flavour.is_installed():
        build.append(flavour.package)
        run.append(flavour.package)
        install.append(flavour.install)
    if not is_installed("cuda"):
        run.append("cuda-python")
        install.append("pip install cuda-python")
    if flavour.needs_gpu_to_build and not devices:
        build.append(_MISSING_GPU)
    fits = target == "local" or any(device.architecture == target for device in devices)
    if not devices or not fits:
        run.append(_MISSING_GPU if target == "local" else f"a GPU of {target} and its driver")
    return TargetStatus(target, tuple(build), tuple(run), tuple(install))


def all_targets() -> tuple[TargetStatus, ...]:
    """The status of every target."""
    devices = cuda_devices()
    return tuple(target_status(target, devices) for target in TARGETS)


def require_buildable(target: str) -> None:
    """Refuse a target that cannot be built here.

    Raises:
        BackendUnavailable: Says what is missing and the command that installs it.
    """
    status = target_status(target)
    if not status.can_build:
        fix = "; ".join(status.install) or "build it on a machine that has one"
        raise BackendUnavailable(
            f"target {target} cannot be built here: missing "
            f"{', '.join(status.missing_to_build)}; {fix}"
        )


def require_int8() -> None:
    """Refuse int8 graphs where NNCF, which makes them, is not installed.

    Raises:
        BackendUnavailable: With the command that installs it.
    """
    if not is_installed("nncf"):
        raise BackendUnavailable(
            "int8 graphs cannot be built here: missing nncf; pip install 'bootpig-rt[int8]'"
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def version_of(*distributions: str) -> str | None:
    """Version of the first of several distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def tool_versions() -> dict[str, str]:
    """Versions of what takes part in a build, by package, of those that are installed."""
    found = {
        "bootpig-rt": version_of("bootpig-rt"),
        "diffusers": version_of("diffusers"),
        "nncf": version_of("nncf"),
        "numpy": version_of("numpy"),
        "onnx": version_of("onnx"),
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "onnxscript": version_of("onnxscript"),
        "openvino": version_of("openvino"),
        "tensorrt": version_of("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt-rtx": version_of("tensorrt-rtx", "tensorrt_rtx"),
        "torch": version_of("torch"),
        "transformers": version_of("transformers"),
        "triton": version_of("triton"),
    }
    return {name: version for name, version in found.items() if version is not None}


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())
