"""The engine and precision that draw a bundle when nobody named one: measured, then remembered."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino as ov

import bootpig_rt
from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.choice import Candidate, choose
from bootpig_rt.backends.openvino.backend import OpenVINOBackend
from bootpig_rt.backends.openvino.cache import BlobCache, cache_folders
from bootpig_rt.backends.openvino.precision import precisions_unasked, processor
from bootpig_rt.backends.options import OnnxRuntimeOptions, OpenVINOOptions
from bootpig_rt.bundle.bundle import Bundle


def quickest(bundle: Bundle, options: OpenVINOOptions) -> OpenVINOBackend:
    """The backend in the precision that this processor draws the bundle quickest in.

    Args:
        bundle: Whose files were all checked.
        options: All but the precision.
    """
    core = ov.Core()
    taken, left_out = precisions_unasked(core, bundle)

    def load(candidate: Candidate) -> Backend:
        precision: Any = candidate.precision
        return OpenVINOBackend(bundle, replace(options, precision=precision))

    _, backend = choose(
        [Candidate(OpenVINOOptions.name, precision) for precision in taken],
        load,
        kept=kept_choices(bundle, options),
        facts=choice_facts(bundle, options, core),
        left_out=left_out,
    )
    assert isinstance(backend, OpenVINOBackend)
    return backend


def kept_choices(bundle: Bundle, options: OpenVINOOptions) -> BlobCache | None:
    """Where choices lie: beside compiled models, however large the pair is."""
    if not options.cache:
        return None
    folder = None if options.cache_folder is None else Path(options.cache_folder)
    return BlobCache(cache_folders(bundle, folder), {})


def choice_facts(bundle: Bundle, options: OpenVINOOptions, core: ov.Core) -> dict[str, Any]:
    """What a choice depends on: anything else may change without another measurement."""
    graphs = [graph.sha256 for graph in bundle.manifest.graphs]
    for variant in bundle.manifest.variants:
        graphs += [graph.sha256 for graph in variant.graphs]
    return {
        "pair": bundle.manifest.pair.fingerprint,
        "graphs": graphs,
        "processor": processor(core),
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "cores": os.cpu_count(),
        "openvino": str(ov.__version__),
        "bootpig_rt": bootpig_rt.__version__,
        "threads": options.threads,
        "streams": options.streams,
    }


def quickest_engine(bundle: Bundle, load_default: Callable[[], Backend]) -> Backend:
    """The engine and precision that this processor draws a bundle for a CPU quickest in.

    Args:
        bundle: For ONNX Runtime on a CPU, with other precisions that passed the parity gate.
        load_default: Loads it in ONNX Runtime.
    """
    options = OpenVINOOptions()
    core = ov.Core()
    taken, left_out = precisions_unasked(core, bundle)
    default = Candidate(OnnxRuntimeOptions.name, "float32")

    def load(candidate: Candidate) -> Backend:
        if candidate == default:
            return load_default()
        precision: Any = candidate.precision
        return OpenVINOBackend(bundle, replace(options, precision=precision))

    _, backend = choose(
        [
            default,
            *(Candidate(OpenVINOOptions.name, one) for one in taken if has_passed(bundle, one)),
        ],
        load,
        kept=kept_choices(bundle, options),
        facts={**choice_facts(bundle, options, core), "onnxruntime": installed("onnxruntime")},
        left_out=left_out,
    )
    if isinstance(backend, OpenVINOBackend):
        backend.prepare()
    return backend


def has_passed(bundle: Bundle, precision: str) -> bool:
    """Whether the parity gate found a precision near enough to torch in OpenVINO."""
    variant = bundle.manifest.variant(precision)
    return variant is not None and variant.parity.status == "passed"


def installed(package: str) -> str:
    """Version of a package; empty where there is none."""
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
