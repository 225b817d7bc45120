"""The pair in OpenVINO: its bundle, built once from the pair under test, and its precisions."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bootpig_rt
from bootpig_rt.backends import BACKENDS, available_backends
from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Unavailable
from bootpig_rt.bundle.bundle import is_bundle, read_manifest
from bootpig_rt.errors import BootPIGError
from bootpig_rt.export.build_options import BuildOptions

PRECISIONS = ("float32", "bf16", "int8")
"""Of rows; what the backend calls them is `_OPTION`."""

_OPTION = {"float32": "float32", "bf16": "bfloat16", "int8": "int8"}


def check_openvino() -> None:
    """Refuse where the backend cannot run.

    Raises:
        Unavailable: It is not part of this build, or its package is missing.
    """
    if "openvino" not in BACKENDS:
        raise Unavailable("this build of bootpig_rt has no backend openvino")
    if "openvino" not in available_backends():
        raise Unavailable(
            f"openvino is not installed; install with: {BACKENDS['openvino'].install}"
        )


def is_for_openvino(folder: Path) -> bool:
    """Is this a bundle that OpenVINO runs?"""
    return is_bundle(folder) and str(read_manifest(folder).runtime.name) == "openvino"


def check_int8() -> None:
    """Refuse where no int8 graphs can be built.

    Raises:
        Unavailable: This build has none.
    """
    check_openvino()
    if not hasattr(BuildOptions, "int8"):
        raise Unavailable("this build of bootpig_rt makes no int8 graphs")


def openvino_bundle(settings: Settings, pair: Path, precision: str) -> Path:
    """The folder itself where OpenVINO runs it, else a bundle built from it, once.

    Args:
        settings: The work folder, and who is told.
        pair: A pair, or a bundle of it.
        precision: One of `PRECISIONS`; int8 graphs have a bundle of their own.

    Raises:
        Unavailable: The backend cannot run here, or the bundle could not be built.
    """
    is_int8 = precision == "int8"
    if is_int8:
        check_int8()
    check_openvino()
    if is_for_openvino(pair) or (settings.is_smoke and not is_int8 and _is_for_cpus(pair)):
        return pair  # to see that all runs, graphs for ONNX Runtime do as well
    kind = "openvino-int8" if is_int8 else "openvino"
    folder = settings.work / "bundles" / f"{kind}-{_name(pair)}"
    if not is_bundle(folder):
        if is_int8 and settings.is_smoke:
            raise Unavailable("its bundle takes minutes to build, too long to see that all runs")
        settings.progress("building for openvino", 0, 1)
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = ["-m", "bootpig_rt", "build-engine", "--pair", str(pair), "--target", "openvino"]
        words += ["--precision", "int8"] if is_int8 else []
        try:
            run_child([*words, "-o", str(folder), "--quiet"])
        except BootPIGError as error:
            raise Unavailable(str(error)) from error
    return folder


def _is_for_cpus(pair: Path) -> bool:
    return is_bundle(pair) and read_manifest(pair).target == "cpu"


def _name(pair: Path) -> str:
    """Stands for the pair and the code that makes its bundle."""
    found = hashlib.sha256(sources_digest().encode())
    for path in sorted(pair.rglob("*.safetensors")):
        found.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return found.hexdigest()[:12]


@functools.cache
def sources_digest() -> str:
    """Of the code that bundles are made by: one of other code is built anew."""
    package = Path(bootpig_rt.__file__).parent
    found = hashlib.sha256(bootpig_rt.__version__.encode())
    for folder in ("export", "kernels", "models"):
        for path in sorted((package / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:8]


def openvino_options(precision: str, threads: int) -> dict[str, Any]:
    """Options of the backend for one of `PRECISIONS`."""
    return {"precision": _OPTION[precision], "threads": threads}


def load_openvino(
    settings: Settings,
    pair: Path,
    precision: str,
    *,
    is_profiled: bool = False,
    batches: Mapping[str, Any] = MappingProxyType({}),
    **others: Any,
) -> OurWay:
    """Ours in OpenVINO; a profile is of models that are compiled anew.

    `batches` are options of the backend that say how the pictures of a batch are launched.

    Raises:
        Unavailable: The backend cannot run here.
        BootPIGError: The bundle has no such precision, or cannot be loaded.
    """
    options = {**openvino_options(precision, settings.threads), **batches}
    if is_profiled:
        options["cache"] = False
    return OurWay(
        openvino_bundle(settings, pair, precision), backend="openvino", threads=settings.threads,
        backend_options=options, **others,
    )  # fmt: skip


def openvino_loaders(
    settings: Settings, pair: Path, *, steps: int | None, references: int = 1
) -> dict[str, Callable[[], OurWay]]:
    """By precision, what loads it once."""
    return {
        precision: functools.cache(
            functools.partial(
                load_openvino, settings, pair, precision, steps=steps, references=references
            )
        )
        for precision in PRECISIONS
    }
