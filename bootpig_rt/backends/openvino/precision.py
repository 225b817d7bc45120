"""What a bundle can be computed in on this processor, and what nobody has to be asked for."""

from __future__ import annotations

import functools
from pathlib import Path

import openvino as ov

from bootpig_rt.backends.options import FLOAT32_GRAPHS, OpenVINOOptions, OpenVINOPrecision
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.errors import BackendUnavailable, ParameterError

HINT = "INFERENCE_PRECISION_HINT"
HINTS: dict[str, str] = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names, of the property and of what it may be."""


def check_precision(core: ov.Core, bundle: Bundle, asked: OpenVINOPrecision) -> None:
    """Refuse a precision that the processor or the bundle has not.

    Raises:
        BackendUnavailable: The processor has no such arithmetic.
        ParameterError: The bundle has no such graphs.
    """
    if asked == "bfloat16" and not has_bfloat16(core):
        raise BackendUnavailable(
            f"precision is 'bfloat16', but {processor(core)} has no such arithmetic; choose "
            "float32 or auto"
        )
    variant = bundle.manifest.variant("int8")
    if asked == "int8" and (variant is None or not variant.graphs):
        raise ParameterError(
            f"precision is 'int8', but {bundle.folder} holds no int8 graphs; build it with "
            "bootpig-rt build-engine --target openvino --precision int8, or choose bfloat16"
        )


def precisions_unasked(core: ov.Core, bundle: Bundle) -> tuple[list[str], list[str]]:
    """The precisions that `auto` may take, widest first, and why others are left out.

    bfloat16 is an option of the runtime, near float32 wherever it was compared; it is left out
    where the parity gate of this bundle found otherwise. int8 graphs were made for this pair alone:
    they must have passed the gate, and judges must have told subjects as well as in float32.
    """
    manifest = bundle.manifest
    taken, left_out = ["float32"], []
    half, narrow = manifest.variant("bfloat16"), manifest.variant("int8")
    if half is not None and half.parity.status == "failed":
        left_out.append("bfloat16 is too far from torch")
    elif has_bfloat16(core):
        taken.append("bfloat16")
    if narrow is None:
        return taken, left_out
    if narrow.parity.status != "passed":
        left_out.append(f"int8: parity with torch {narrow.parity.status}")
    elif narrow.identity is None:
        left_out.append("int8 was not judged (bootpig-rt verify --precision int8 --judge)")
    elif not narrow.identity.passed:
        left_out.append(f"int8 loses {-narrow.identity.change_points:.1f} points of identity")
    else:
        taken.append("int8")
    return taken, left_out


def float32_graphs(bundle: Bundle, options: OpenVINOOptions, precision: str) -> tuple[str, ...]:
    """Graphs that stay in float32 in a precision: as asked, as the gate found, or by default."""
    variant = bundle.manifest.variant(precision)
    found = None if variant is None else variant.float32_graphs
    for graphs in (options.float32_graphs, found):
        if graphs is not None:
            return graphs
    return FLOAT32_GRAPHS.get(precision, ())


def rest_of(precision: str) -> str:
    """What is computed in where a precision is not: products that stay wide in int8 graphs.

    bfloat16 where the processor multiplies tiles of it; elsewhere it would save nothing.
    """
    if precision != "int8":
        return precision
    return "bfloat16" if has_amx() else "float32"


def has_bfloat16(core: ov.Core) -> bool:
    """Whether the processor computes in it."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def processor(core: ov.Core) -> str:
    """Its name."""
    return str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()


@functools.cache
def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16; False where the system does not say."""
    try:
        return " amx_bf16 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
