"""What a bundle is computed in: as asked for, or what this processor runs quickest."""

from __future__ import annotations

import logging
from pathlib import Path

import openvino as ov

from bootpig_rt.backends.options import OpenVINOPrecision
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.errors import BackendUnavailable, ParameterError

logger = logging.getLogger(__name__)

HINTS: dict[str, str] = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names."""


def choose_precision(core: ov.Core, bundle: Bundle, asked: OpenVINOPrecision) -> str:
    """`float32` or `bfloat16`.

    Args:
        core: OpenVINO.
        bundle: Says how far each precision was from torch.
        asked: `auto` takes bfloat16 where the processor multiplies matrices of it (AMX), unless the
            bundle's parity gate found it too far from torch.

    Raises:
        BackendUnavailable: The processor has none of what was asked for.
        ParameterError: The bundle has no such graphs.
    """
    can_narrow = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked == "int8":
        raise ParameterError(
            f"precision is 'int8', but {bundle.folder} holds no int8 graphs; choose bfloat16"
        )
    if asked == "bfloat16" and not can_narrow:
        raise BackendUnavailable(
            f"precision is 'bfloat16', but {processor(core)} has no such arithmetic; choose "
            "float32 or auto"
        )
    if asked != "auto":
        return asked
    failed = any(
        variant.precision == "bfloat16" and variant.parity.status == "failed"
        for variant in bundle.manifest.variants
    )
    chosen = "bfloat16" if can_narrow and has_amx() and not failed else "float32"
    logger.info("openvino computes in %s on %s", chosen, processor(core))
    return chosen


def processor(core: ov.Core) -> str:
    """Its name."""
    return str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16; False where the system does not say."""
    try:
        return " amx_bf16 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
