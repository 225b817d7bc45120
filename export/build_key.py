"""What graphs and engines depend on, as one number: a build goes on from what has the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import to_builtins

import bootpig_rt
from bootpig_rt.backends.cuda.devices import cuda_devices
from bootpig_rt.bundle.files import measure
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.targets import tool_versions

if TYPE_CHECKING:
    pass


def build_key(options: BuildOptions, fingerprint: str) -> str:
    """Stands for everything that graphs and engines depend on."""
    devices = cuda_devices() if options.target == "local" else ()
    parts = {
        "pair": fingerprint,
        "options": to_builtins(options),
        "calibration": _calibration_digest(options),
        "gpu": devices[0].architecture if devices else None,
        "sources": _sources_digest(),
        "tools": tool_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _calibration_digest(options: BuildOptions) -> str | None:
    """sha256 over the pictures that int8 graphs are calibrated on; None for a build without any.

    Raises:
        ParameterError: There are too few.
    """
    if not options.int8:
        return None
    from bootpig_rt.export.calibration import calibration_subjects

    digest = hashlib.sha256()
    for path, prompt in calibration_subjects(
        Path(options.calibration) if options.calibration else None
    ):
        digest.update(f"{prompt} {measure(path)[1]}\n".encode())
    return digest.hexdigest()


def _sources_digest() -> str:
    """sha256 over the source files that graphs and engines are made by."""
    package = Path(bootpig_rt.__file__).parent
    digest = hashlib.sha256()
    for folder in ("export", "kernels", "models"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name} {measure(path)[1]}\n".encode())
    return digest.hexdigest()
