"""Backends by name. Each is imported when it is first asked for, never before."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.backends.base import Backend, BackendLoader
from bootpig_rt.errors import BackendUnavailable, ParameterError

__all__ = ["BACKENDS", "available_backends", "create_backend"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """Where a backend lives and what it needs.

    Attributes:
        module: Has a function `load` of type `BackendLoader`.
        packages: Import names without which it cannot run.
        extra: The extra of this package that installs them.
    """

    module: str
    packages: tuple[str, ...]
    extra: str


# In the order in which "auto" tries them.
BACKENDS: dict[str, _Entry] = {
    "torch": _Entry(
        "bootpig_rt.backends.torch_backend", ("torch", "diffusers", "transformers"), "torch"
    ),
}

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def create_backend(
    name: str, folder: str | Path, *, device: str = "auto", base_model: str | Path | None = None
) -> Backend:
    """Load a pair with the named backend.

    Args:
        name: `auto` or one of `BACKENDS`. `auto` takes the first one that is installed and says
            which in one log line; a backend asked for by name is used or an error is raised.
        folder: The pair.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: A Stable Diffusion folder, where the pair holds the two U-Nets alone.

    Raises:
        ParameterError: Unknown backend or device.
        BackendUnavailable: A package or the device is missing.
        CheckpointError: The folder is not a usable pair.
    """
    if name != "auto" and name not in BACKENDS:
        raise ParameterError(f"backend is {name!r}, expected one of: auto, {', '.join(BACKENDS)}")
    if not _DEVICE.fullmatch(str(device)):
        raise ParameterError(f"device is {device!r}, expected auto, cpu, cuda or cuda:N")
    chosen = _first_available() if name == "auto" else name
    entry = BACKENDS[chosen]
    missing = _missing(entry)
    if missing:
        raise BackendUnavailable(
            f"backend {chosen} needs {', '.join(missing)}, not installed; "
            f'install with: pip install "bootpig-rt[{entry.extra}]"'
        )
    load: BackendLoader = importlib.import_module(entry.module).load
    backend = load(Path(folder), device, None if base_model is None else Path(base_model))
    if name == "auto" or device == "auto":
        logger.info("backend %s on %s, pair %s", backend.name, backend.device, folder)
    return backend


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose packages are installed."""
    return tuple(name for name, entry in BACKENDS.items() if not _missing(entry))


def _first_available() -> str:
    available = available_backends()
    if not available:
        extras = " or ".join(f'pip install "bootpig-rt[{e.extra}]"' for e in BACKENDS.values())
        raise BackendUnavailable(f"no backend is installed; install one with: {extras}")
    return available[0]


def _missing(entry: _Entry) -> list[str]:
    return [package for package in entry.packages if importlib.util.find_spec(package) is None]
