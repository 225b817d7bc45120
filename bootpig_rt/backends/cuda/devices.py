"""NVIDIA GPUs of this machine, asked of the driver itself: needs no package, starts no context."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class CudaDevice:
    """A GPU.

    Attributes:
        index: As in `cuda:N`.
        name: Of the model.
        architecture: Compute capability, `sm_89`.
        memory_bytes: Of the device.
    """

    index: int
    name: str
    architecture: str
    memory_bytes: int


def cuda_devices() -> tuple[CudaDevice, ...]:
    """The GPUs that a CUDA program sees; none where there is no driver."""
    driver = _driver()
    if driver is None:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(
        device for index in range(count.value) if (device := _device(driver, index)) is not None
    )


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs programs for; None where there is no driver."""
    driver, number = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice | None:
    handle, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        driver.cuDeviceGet(ctypes.byref(handle), index)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    )
    if failed:
        return None
    architecture = f"sm_{major.value}{minor.value}"
    return CudaDevice(index, name.value.decode(errors="replace"), architecture, memory.value)
