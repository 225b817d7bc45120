"""Backends by name. Each is imported when it is first asked for, never before."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootpig_rt.backends.base import Backend, BackendLoader
from bootpig_rt.backends.options import (
    BackendOptions,
    OnnxRuntimeOptions,
    OpenVINOOptions,
    TensorRTOptions,
    TorchOptions,
)
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.bundle import Bundle, is_bundle, open_bundle, read_manifest
from bootpig_rt.bundle.model_index import check_model_index
from bootpig_rt.errors import BackendUnavailable, BundleError, CheckpointError, ParameterError

__all__ = [
    "BACKENDS",
    "BackendOptions",
    "OnnxRuntimeOptions",
    "OpenVINOOptions",
    "PairOptions",
    "TensorRTOptions",
    "TorchOptions",
    "available_backends",
    "backend_settings",
    "create_backend",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """Where a backend lives and what it needs.

    Attributes:
        module: Has a function `load` of type `BackendLoader`.
        packages: Import names without which it cannot run.
        extra: The extra of this package that installs them.
        cuda_extra: The extra that installs them for CUDA devices, where that is another one.
        reads_bundles: Its `load` takes an opened bundle, not the folder of a pair.
        options: Settings of the backend, which its `load` takes as the last argument.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    options: type[BackendOptions]
    cuda_extra: str | None = None
    reads_bundles: bool = True

    @property
    def install(self) -> str:
        """The command that installs what it needs."""
        command = f'pip install "bootpig-rt[{self.extra}]"'
        if self.cuda_extra is not None:
            command += f', or for CUDA devices: pip install "bootpig-rt[{self.cuda_extra}]"'
        return command


BACKENDS: dict[str, _Entry] = {
    "torch": _Entry(
        "bootpig_rt.backends.torch.backend",
        ("torch", "diffusers", "transformers"),
        "torch",
        TorchOptions,
        reads_bundles=False,
    ),
    "onnxruntime": _Entry(
        "bootpig_rt.backends.onnxruntime.backend",
        ("onnxruntime",),
        "cpu",
        OnnxRuntimeOptions,
        cuda_extra="gpu",
    ),
    "openvino": _Entry(
        "bootpig_rt.backends.openvino.backend", ("openvino",), "openvino", OpenVINOOptions
    ),
    "tensorrt": _Entry(
        "bootpig_rt.backends.tensorrt.backend", ("cuda",), "tensorrt", TensorRTOptions
    ),
}

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def create_backend(
    backend: str | BackendOptions,
    folder: str | Path,
    *,
    device: str = "auto",
    pair: PairOptions | None = None,
) -> Backend:
    """Load a pair with the named backend.

    Args:
        backend: `auto`, one of `BACKENDS`, or the options of one. `auto` takes the one that the
            folder was made for: what the manifest of a bundle names, torch for a pair without
            graphs. A bundle for a CPU is run in OpenVINO where `onnxruntime` is not installed,
            in torch where neither is. Where its manifest says that OpenVINO is near enough to torch
            in other precisions, the quickest on this processor is taken: measured once, by a
            margin, and remembered (`choice.py`). One log line says which, and why. A backend asked
            for by name is used or an error is raised.
        folder: The pair, or a bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        pair: What is loaded beside the folder, and whose it must be. With LoRAs, controls or a base
            model `auto` takes torch.

    Raises:
        BundleError: The bundle is damaged, not signed with the key to trust, or holds other weights
            than those that were signed.
        ParameterError: Unknown backend or device; a base model or a LoRA together with a key; a
            LoRA with another backend than torch.
        BackendUnavailable: A package or the device is missing.
        CheckpointError: The folder is not a usable pair.
    """
    pair = PairOptions() if pair is None else pair
    base_model, trust = pair.base_folder(), pair.key()
    loras, controls = pair.loras(), pair.control_folders()
    name = backend if isinstance(backend, str) else getattr(backend, "name", None)
    if name is None or (name != "auto" and name not in BACKENDS):
        raise ParameterError(
            f"backend is {backend!r}, expected one of: auto, {', '.join(BACKENDS)}"
        )
    if not _DEVICE.fullmatch(str(device)):
        raise ParameterError(f"device is {device!r}, expected auto, cpu, cuda or cuda:N")
    if trust is not None and base_model is not None:
        raise ParameterError(
            f"base model {base_model} is given together with a key to trust, but nobody signed it; "
            "build a bundle of the whole pair and sign that, or leave the base model out"
        )
    if trust is not None and loras:
        raise ParameterError(
            f"LoRA {loras[0].path} is given together with a key to trust, but nobody signed it; "
            "build a bundle with --lora and sign that, or leave the LoRA out"
        )
    if trust is not None and controls:
        raise ParameterError(
            f"control {controls[0].path} is given together with a key to trust, but nobody signed "
            "it; build a bundle with --control and sign that, or leave the control out"
        )
    folder = Path(folder)
    if not folder.is_dir():  # ahead of packages: another backend would not help
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"model {folder} {what}, expected the folder of a pair or a bundle; check the path",
            folder,
        )
    if not is_bundle(folder):  # whose files are all compared with its manifest
        check_model_index(folder)
    needs_weights = base_model is not None or bool(loras) or bool(controls)
    chosen = _backend_for(folder, needs_weights) if name == "auto" else name
    if loras and chosen != "torch":
        raise ParameterError(
            f"LoRA {loras[0].path} is given with backend {chosen}, whose graphs hold the weights "
            "that they were built with; build a bundle with bootpig-rt build-engine --lora FILE, "
            "or choose the backend torch"
        )
    if controls and chosen != "torch":
        raise ParameterError(
            f"control {controls[0].path} is given with backend {chosen}, whose bundles hold the "
            "graphs of controls that they were built with; build a bundle with bootpig-rt "
            f"build-engine --control {controls[0].kind}={controls[0].path}, or choose the backend "
            "torch"
        )
    entry = BACKENDS[chosen]
    missing = _missing(entry)
    if missing:
        raise BackendUnavailable(_how_to_run(chosen, missing, folder))
    settings = entry.options() if isinstance(backend, str) else backend
    if loras and isinstance(settings, TorchOptions):
        settings = replace(settings, loras=(*settings.loras, *loras))
    if controls and isinstance(settings, TorchOptions):
        settings = replace(settings, controls=(*settings.controls, *controls))
    if chosen in ("onnxruntime", "openvino") and not is_bundle(folder):
        raise ParameterError(
            f"{folder} holds no graphs for {chosen}; build them with bootpig-rt build-engine "
            f"--target cpu --pair {folder} -o BUNDLE, or choose the backend torch"
        )
    if entry.reads_bundles and base_model is not None:
        raise BundleError(
            f"{folder} is run as a bundle, which holds its own text encoder and autoencoder; "
            "leave out the base model, or choose the backend torch",
            folder,
        )
    bundle: Bundle | None = None
    if entry.reads_bundles or trust is not None:
        bundle = open_bundle(folder, trust=trust)
    source: Bundle | Path = bundle if bundle is not None and entry.reads_bundles else folder
    load: BackendLoader = importlib.import_module(entry.module).load

    def load_chosen() -> Backend:
        return load(source, device, base_model, settings)

    if name == "auto" and bundle is not None and _has_other_engine(bundle, chosen, device):
        auto = importlib.import_module("bootpig_rt.backends.openvino.auto")
        loaded: Backend = auto.quickest_engine(bundle, load_chosen)
    else:
        loaded = load_chosen()
    if bundle is not None and loaded.spec.fingerprint != bundle.manifest.pair.fingerprint:
        raise BundleError(
            f"{folder} holds another pair than its manifest names: a file changed while it was "
            "loaded; do not use it, copy the bundle again",
            folder,
        )
    if name == "auto" or device == "auto":
        logger.info("backend %s on %s, pair %s", loaded.name, loaded.device, folder)
    return loaded


def backend_settings(
    backend: str, *, threads: int | None = None, precision: str | None = None
) -> str | BackendOptions:
    """A backend by name, with those of its options that a command line or a service has.

    Args:
        backend: `auto` or one of `BACKENDS`.
        threads: Of ONNX Runtime or OpenVINO; with `auto` of the one that is installed.
        precision: Of OpenVINO or torch.

    Raises:
        ParameterError: The backend has no such option, or the value is none of its.
    """
    if threads is None and precision is None:
        return backend
    name = backend
    if name == "auto" and precision is None:
        missing = _missing(BACKENDS["onnxruntime"]) and not _missing(BACKENDS["openvino"])
        name = "openvino" if missing else "onnxruntime"
    chosen: Any = precision
    if name == "openvino":
        return OpenVINOOptions(threads=threads or 0, precision=chosen or "auto")
    if precision is not None and (name != "torch" or threads is not None):
        raise ParameterError(
            f"precision is for the backends openvino and torch, got the backend {backend!r}"
            f"{' and threads' if name == 'torch' else ''}"
        )
    if name == "torch" and precision is not None:
        return TorchOptions(precision=chosen)
    if name != "onnxruntime":
        raise ParameterError(
            f"threads is for ONNX Runtime and OpenVINO, got the backend {backend!r}"
        )
    return OnnxRuntimeOptions(intra_op_threads=threads or 0)


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose packages are installed."""
    return tuple(name for name, entry in BACKENDS.items() if not _missing(entry))


def _backend_for(folder: Path, needs_weights: bool) -> str:
    """The backend that a folder was made for."""
    if needs_weights or not is_bundle(folder):
        return "torch"
    manifest = read_manifest(folder)
    if manifest.runtime.name not in ("onnxruntime", "openvino"):
        return "tensorrt"
    # Such a bundle holds the pair's weights beside the graphs; those for a CPU are standard ones.
    able: tuple[str, ...]
    if manifest.runtime.name == "openvino":
        able = ("openvino", "torch")
    elif manifest.target == "cpu":
        able = ("onnxruntime", "openvino", "torch")
    else:
        able = ("onnxruntime", "torch")
    return next((name for name in able if not _missing(BACKENDS[name])), able[0])


def _has_other_engine(bundle: Bundle, chosen: str, device: str) -> bool:
    """Whether OpenVINO may draw what ONNX Runtime would: its parity gate passed in some way."""
    manifest = bundle.manifest
    return (
        chosen == "onnxruntime"
        and manifest.target == "cpu"
        and device in ("auto", "cpu")
        and any(variant.parity.status == "passed" for variant in manifest.variants)
        and not _missing(BACKENDS["openvino"])
    )


def _how_to_run(name: str, missing: list[str], folder: Path) -> str:
    """What to install; and for a pair without graphs, that they could be built elsewhere."""
    text = (
        f"backend {name} needs {', '.join(missing)}, not installed; "
        f"install with: {BACKENDS[name].install}"
    )
    if name == "torch" and not is_bundle(folder):
        text += (
            "; or run the pair without torch: build it on another machine with bootpig-rt "
            "build-engine --target cpu"
        )
    return text


def _missing(entry: _Entry) -> list[str]:
    return [package for package in entry.packages if importlib.util.find_spec(package) is None]
