"""The backends and devices that can run a pair on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.backends import available_backends
from bootpig_rt.bundle.bundle import is_bundle, read_manifest


@dataclass(frozen=True)
class BackendHere:
    """A backend on a device.

    Attributes:
        backend: Its name.
        device: `cpu` or `cuda`.
    """

    backend: str
    device: str

    @property
    def name(self) -> str:
        """For rows: `torch`, `torch cuda`."""
        return self.backend if self.device == "cpu" else f"{self.backend} {self.device}"


def backends_here(folder: Path) -> list[BackendHere]:
    """What can run the pair or bundle in `folder`, on CPU and GPU; ONNX Runtime first."""
    runtime = read_manifest(folder).runtime.name if is_bundle(folder) else "torch"
    installed = available_backends()
    found: list[BackendHere] = []
    if "onnxruntime" in installed and runtime == "onnxruntime":
        import onnxruntime

        found.append(BackendHere("onnxruntime", "cpu"))
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            found.append(BackendHere("onnxruntime", "cuda"))
    has_gpu = False
    if "torch" in installed:
        import torch

        has_gpu = torch.cuda.is_available()
        if runtime in ("torch", "onnxruntime"):  # such a bundle holds the weights as well
            found.append(BackendHere("torch", "cpu"))
            found += [BackendHere("torch", "cuda")] if has_gpu else []
    if "tensorrt" in installed and runtime not in ("torch", "onnxruntime") and has_gpu:
        found.append(BackendHere("tensorrt", "cuda"))
    return found
