"""Runs the parity gate: records torch once, then compares backends with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.cuda.devices import cuda_devices
from bootpig_rt.backends.host_memory import free_memory_bytes
from bootpig_rt.backends.host_table import Precision
from bootpig_rt.backends.options import (
    FLOAT32_GRAPHS,
    BackendOptions,
    OnnxRuntimeOptions,
    OpenVINOOptions,
)
from bootpig_rt.bundle.manifest import ParityReport, ParityResult, Profile, Target, Variant
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.errors import BackendUnavailable, ParameterError
from bootpig_rt.export.parity import Plan, Progress, Recording, compare, make_plan, record
from bootpig_rt.export.parity_limits import LIMITS
from bootpig_rt.export.targets import target_status

_LARGE_BYTES = 1 << 30
_LOADING = 5
"""What a graph is taken to need while ONNX Runtime loads it, by its weights in float16 on disk."""

_BACKEND_OF_TARGET = {"cpu": "onnxruntime", "openvino": "openvino", "cuda": "onnxruntime"}


@dataclass(frozen=True)
class Reference:
    """Torch's side of a gate.

    Attributes:
        plan: What was run.
        recording: What came out.
        fingerprint: Of the pair.
    """

    plan: Plan
    recording: Recording
    fingerprint: str


@dataclass(frozen=True)
class GateRun:
    """One comparison.

    Attributes:
        report: Passed or failed.
        recording: Of the backend under test.
    """

    report: ParityReport
    recording: Recording


@dataclass(frozen=True)
class Place:
    """Where a target can be compared on this machine.

    Attributes:
        backend: By name.
        device: By name.
        is_target: It is what the target is for; otherwise a stand-in with the same graphs.
        reason: Why it is a stand-in.
    """

    backend: str
    device: str
    is_target: bool
    reason: str = ""


def record_reference(
    backend: Backend,
    *,
    profile: Profile,
    merges: tuple[Merge, ...],
    steps: int | None = None,
    keeps_features: bool = False,
    takes_masks: bool = False,
    takes_controls: bool = False,
    progress: Progress | None = None,
) -> Reference:
    """Run the gate's inputs through torch; `steps`, of the longest run, fit by default.

    `keeps_features` adds steps without deep blocks, where the backend under test has them, and
    `takes_masks` pictures that are drawn into others, and `takes_controls` those that follow maps,
    where the pair has controls.
    """
    plan = make_plan(
        backend,
        profile=profile,
        merges=merges,
        steps=steps,
        keeps_features=keeps_features,
        takes_masks=takes_masks,
        takes_controls=takes_controls,
    )
    return Reference(plan, record(backend, plan, progress), backend.spec.fingerprint)


def compare_backend(
    folder: Path,
    place: Place,
    reference: Reference,
    precision: Precision,
    progress: Progress | None = None,
    *,
    float32_graphs: tuple[str, ...] | None = None,
) -> GateRun:
    """Run the gate's inputs through a bundle and compare, with the limits of a precision.

    `float32_graphs` stay so in OpenVINO; None: as the bundle says.

    Raises:
        BundleError: The bundle may not be loaded.
        BackendUnavailable: The backend or the device is not there.
    """
    settings = _settings(folder, place, precision)
    if isinstance(settings, OpenVINOOptions):
        settings = replace(settings, float32_graphs=float32_graphs)
    backend = create_backend(settings, folder, device=place.device)
    new = record(backend, reference.plan, progress)
    results = compare(reference.recording, new, LIMITS[precision])
    passed = all(result.passed for result in results)
    report = ParityReport(
        status="passed" if passed else "failed",
        reason="; ".join(part for part in (place.reason, _remark(backend)) if part),
        backend=backend.name,
        device=backend.device,
        results=results,
    )
    return GateRun(report, new)


def compare_variants(
    folder: Path, place: Place, reference: Reference, progress: Progress | None = None
) -> tuple[Variant, ...]:
    """The other precisions that a bundle can be computed in, each compared with torch.

    First with all graphs in that precision, then with some of them in float32. One that is too far
    from torch even so, or that this machine cannot compute in, is no reason to refuse the bundle:
    it says so, and is not chosen unasked.
    """
    if place.backend != OpenVINOOptions.name:
        return ()
    report, wide = ParityReport("not run"), None
    try:
        for wide in ((), FLOAT32_GRAPHS["bfloat16"]):
            report = compare_backend(
                folder, place, reference, "bfloat16", progress, float32_graphs=wide
            ).report
            if report.status == "passed":
                break
    except BackendUnavailable as error:
        report, wide = ParityReport("not run", str(error)), None
    return (Variant("bfloat16", report, float32_graphs=wide),)


def _remark(backend: Backend) -> str:
    """Which graphs a precision leaves in float32; empty for none."""
    wide: tuple[str, ...] = getattr(backend, "float32_graphs", ())
    return f"in float32: {', '.join(wide)}" if wide else ""


def _settings(folder: Path, place: Place, precision: Precision) -> str | BackendOptions:
    """One graph at a time, where all of them would not fit into a small machine.

    A graph's float32 weights take twice their bytes on disk, and as much again while it loads. An
    arena of ONNX Runtime grows by powers of two, which wastes gigabytes here.
    """
    stored = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
    if place.backend == OpenVINOOptions.name:
        options = OpenVINOOptions(precision=precision, cache=False)  # type: ignore[arg-type]
        return replace(options, models_kept=1, buckets=()) if stored > _LARGE_BYTES else options
    if place.backend == "onnxruntime" and stored > _LARGE_BYTES:
        largest = max(path.stat().st_size for path in folder.glob("*/*.safetensors"))
        free = free_memory_bytes()
        is_roomy = free is None or _LOADING * largest < free
        return OnnxRuntimeOptions(sessions_kept=1, arena=False, fold_constants=is_roomy)
    return place.backend


def place_of(target: Target, backend: str | None = None) -> Place:
    """Where the gate of a target runs on this machine.

    Args:
        target: What the bundle is for.
        backend: Another backend that runs it as well: `openvino`, for one that is for a CPU.

    Raises:
        ParameterError: Another backend than there are for the target.
    """
    if backend == OpenVINOOptions.name and target in ("cpu", "openvino"):
        return Place(OpenVINOOptions.name, "cpu", is_target=True)
    if backend not in (None, _BACKEND_OF_TARGET.get(target, "tensorrt")):
        raise ParameterError(
            f"backend is {backend!r} for a bundle that was built for {target}, expected "
            f"{_BACKEND_OF_TARGET.get(target, 'tensorrt')}"
            f"{' or openvino' if target == 'cpu' else ''}"
        )
    if target == "cpu":
        return Place("onnxruntime", "cpu", is_target=True)
    if target == "openvino":
        return Place(OpenVINOOptions.name, "cpu", is_target=True)
    status = target_status(target)
    if status.can_run:
        devices = cuda_devices()
        fitting = [device.index for device in devices if device.architecture == target]
        index = fitting[0] if fitting else devices[0].index
        name = "onnxruntime" if target == "cuda" else "tensorrt"
        return Place(name, f"cuda:{index}", is_target=True)
    missing = ", ".join(status.missing_to_run)
    return Place(
        "onnxruntime",
        "cpu",
        is_target=False,
        reason=(
            f"this machine lacks {missing}; the graphs were compared in ONNX Runtime on a CPU; "
            "run bootpig-rt verify on the target machine"
        ),
    )


def worst(results: tuple[ParityResult, ...]) -> ParityResult:
    """The result that is nearest to its limit or furthest over it."""

    def share(result: ParityResult) -> float:
        if result.relative_error is None:
            return float("inf")
        if result.psnr_db is not None and result.psnr_limit_db is not None:
            picture = result.psnr_limit_db / max(result.psnr_db, 1e-9)
            return max(picture, result.relative_error / result.relative_limit)
        return result.relative_error / result.relative_limit

    return max(results, key=share)


def describe_worst(results: tuple[ParityResult, ...]) -> str:
    """One line about the result that is furthest over its limit."""
    result = worst(results)
    error = "not finite" if result.relative_error is None else f"{result.relative_error:.1e}"
    text = f"{result.name} has a relative error of {error}, expected at most "
    text += f"{result.relative_limit:.0e}"
    if result.psnr_db is not None:
        text += f", and {result.psnr_db:.1f} dB, expected at least {result.psnr_limit_db:.0f}"
    return text
