"""Errors of CUDA after which nothing runs in the process any more: only a new one can go on."""

from __future__ import annotations

_LASTING = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "illegaladdress",
    "illegal_address",
    "misaligned address",
    "misaligned_address",
    "invalid program counter",
    "unspecified launch failure",
    "launch_failed",
    "launchfailure",
    "launch timed out",
    "device-side assert",
    "hardware stack error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "context is destroyed",
    "gpu is lost",
    "cuda failure 700",
    "cuda failure 719",
)
"""As the driver, the runtime, torch, ONNX Runtime and TensorRT say them, in lower case."""


def lasting_fault(error: BaseException | None) -> str | None:
    """What broke the device for this process, in the words of the driver; None for other errors.

    Args:
        error: Of a launch, with what it came from.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        found = next((words for words in _LASTING if words in text), None)
        if found is not None:
            return found
        error = error.__cause__ or error.__context__
    return None
