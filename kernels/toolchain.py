"""Is Triton here, is it new enough, and does it interpret or compile?

The one place that asks. Importing this file loads neither Triton nor torch.
"""

from __future__ import annotations

import importlib.metadata
import os

from packaging.version import Version

from bootpig_rt.errors import BackendUnavailable

MINIMUM_TRITON = (3, 3)
FIRST_WITH_DESCRIPTORS = (3, 4)


def triton_version() -> tuple[int, int] | None:
    """(major, minor) of the installed Triton, None where there is none."""
    for package in ("triton", "pytorch-triton", "triton-windows"):
        try:
            version = Version(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            continue
        return version.major, version.minor
    return None


def require_triton() -> None:
    """Refuse a missing or an old Triton.

    Raises:
        BackendUnavailable: Says which version is there and which is needed.
    """
    version = triton_version()
    needed = ".".join(map(str, MINIMUM_TRITON))
    if version is None:
        raise BackendUnavailable(
            f"Triton is not installed, the fused kernels need {needed} or newer; "
            "pip install 'bootpig-rt[kernels]', or force the eager path with "
            "BOOTPIG_RT_ATTENTION=eager"
        )
    if version < MINIMUM_TRITON:
        raise BackendUnavailable(
            f"Triton is {version[0]}.{version[1]}, the fused kernels need {needed} or newer; "
            "pip install --upgrade triton, or force the eager path with BOOTPIG_RT_ATTENTION=eager"
        )


def has_tensor_descriptors() -> bool:
    """This Triton passes descriptors of tensors from the host to a kernel."""
    version = triton_version()
    return version is not None and version >= FIRST_WITH_DESCRIPTORS


def is_interpreting() -> bool:
    """Triton runs kernels in its interpreter, on the CPU: for tests, hundreds of times slower."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
