"""Fused or eager: which implementation of reference self-attention, and of what is around it, runs.

`BOOTPIG_RT_ATTENTION` decides: `auto` (the default), `fused` or `eager`. `auto` takes the fused
kernels for inference on a CUDA device that has a tile configuration, and the eager path elsewhere:
on a CPU, under autograd, in an export. Each choice is one log line, the first time it is made.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from bootpig_rt.errors import BackendUnavailable, ParameterError
from bootpig_rt.kernels import checks, tiles, toolchain

VARIABLE = "BOOTPIG_RT_ATTENTION"
CHOICES = ("auto", "fused", "eager")

_log = logging.getLogger(__name__)


def is_fused(q: Tensor) -> bool:
    """The fused kernels compute this attention.

    Args:
        q: Queries [B, H, N, D].

    Raises:
        BackendUnavailable: `fused` is asked for and cannot run here, such as under autograd; says
            why.
        ParameterError: The variable holds something else.
    """
    # Neither is a change of mind between two runs, so neither is worth a log line.
    is_watched = torch.compiler.is_exporting() or is_tracing()
    needs_gradients = torch.is_grad_enabled() and q.requires_grad
    decided: bool = _decide(q.device, q.dtype, q.shape[-1], is_watched, needs_gradients)
    return decided


def fuses_blocks(x: Tensor) -> bool:
    """The kernels around attention compute: norms, GEGLU, ends of residual blocks.

    In inference on CUDA, outside of autocast, which gives each module's operators types of its own
    and leaves the weights in float32. torch's compiler fuses such things itself.
    `BOOTPIG_RT_ATTENTION=eager` turns these kernels off too.

    Args:
        x: What they would read.
    """
    if not _is_on_gpu(x) or x.dtype not in checks.DTYPES:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if torch.compiler.is_compiling() or is_tracing() or torch.is_grad_enabled():
        return False
    return os.environ.get(VARIABLE) != "eager" and _has_kernels(x.device)


def fuses_picture(x: Tensor) -> bool:
    """The same for a picture, which those kernels read in channels-last alone.

    Args:
        x: [B, C, h, w].
    """
    return fuses_blocks(x) and x.is_contiguous(memory_format=torch.channels_last)


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    """Triton is there, and the architecture is one that kernels are compiled and checked for."""
    return _lacking(device) is None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _decide(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    is_watched: bool,
    needs_gradients: bool,
) -> bool:
    """The same from what does not change in a compiled function."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ParameterError(f"{VARIABLE} is {choice!r}, expected {', '.join(CHOICES)}")
    if choice == "eager":
        return _report(False, f"{VARIABLE} says so")
    if choice == "auto" and (is_watched or needs_gradients):
        return False
    reason = _obstacle(device, dtype, head_dim)
    if reason is None and needs_gradients:
        reason = "the kernels have no gradients"
    if reason is None:
        return _report(True, f"{device.type}, {str(dtype).removeprefix('torch.')}")
    if choice == "fused":
        raise BackendUnavailable(
            f"{VARIABLE} is fused, but {reason}; set it to auto or eager, or choose another device"
        )
    return _report(False, reason)


@functools.cache
def _obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the fused kernels cannot run, None where they can."""
    if dtype not in checks.DTYPES:
        return f"the kernels do not compute in {str(dtype).removeprefix('torch.')}"
    if not checks.supports_head_dim(head_dim):
        return f"head dim {head_dim} is not 16 to 128 in steps of 8"
    if device.type != "cuda":
        return None if toolchain.is_interpreting() else f"the device is {device.type}, not cuda"
    return _lacking(device)


def _lacking(device: torch.device) -> str | None:
    """What a GPU lacks to run the kernels."""
    try:
        toolchain.require_triton()
    except BackendUnavailable as error:
        return str(error).partition(";")[0]
    from bootpig_rt.kernels.launch import architecture_of

    architecture = architecture_of(device)
    if architecture not in tiles.ARCHITECTURES:
        return f"there is no tile configuration for sm_{architecture}"
    return None


@functools.cache
def _report(fused: bool, why: str) -> bool:
    name = "fused Triton kernels" if fused else "eager torch"
    _log.info("reference self-attention: %s (%s)", name, why)
    return fused
