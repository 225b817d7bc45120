"""What the device does in one step: kernels, launches, and the share of each kind of work."""

from __future__ import annotations

import re
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bootpig_rt.benchmarks.gpu.picture_inputs import PictureInputs, PictureWay, Stages
from bootpig_rt.benchmarks.gpu.timer import synchronize

KINDS = ("attention", "convolution", "norm", "product", "other")

# The first that matches decides: names of attention kernels hold words of the others.
_WORDS = (
    ("attention", r"attention|fmha|flash|sdpa|softmax|reference_merge|flex"),
    ("norm", r"norm|welford|rowwisemoments|computefusedparams"),
    ("convolution", r"conv|implicit|fprop|winograd|nchw|nhwc|im2col"),
    ("product", r"gemm|gemv|cutlass|cublas|nvjet|splitk|matmul|addmm|(^|::)b?mm$|linear"),
)
_LAUNCHES = re.compile(r"^(cuda|cu)(LaunchKernel|GraphLaunch|LaunchCooperative)")
_COPIES = re.compile(r"^(Memcpy|Memset)")


def kind_of(name: str) -> str:
    """Attention, convolution, norm, product of matrices, or other, by the name of a kernel."""
    lowered = name.lower()
    for kind, words in _WORDS:
        if re.search(words, lowered):
            return kind
    return "other"


def profile_step(way: PictureWay, inputs: PictureInputs, device: str) -> dict[str, float]:
    """Profile one step after two that warm up.

    On a CPU operators take the place of kernels, and there are no launches.

    Returns:
        `kernels` and `launches` of the step, `busy_ms` of the device, and `<kind>_share` of that.
    """
    steps = way.begin(inputs, Stages(device))
    last = inputs.solver.num_steps - 1
    for index in range(min(2, last)):
        steps.step(index)
    synchronize(device)
    is_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if is_cuda else [])
    with profile(activities=activities) as profiler:
        steps.step(min(2, last))
        synchronize(device)
    found = _of_cuda(profiler) if is_cuda else _of_cpu(profiler)
    steps.latents()
    return found


def _of_cuda(profiler: Any) -> dict[str, float]:
    times: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    kernels = launches = 0
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            is_copy = bool(_COPIES.match(event.name))
            kernels += not is_copy
            times["other" if is_copy else kind_of(event.name)] += event.time_range.elapsed_us()
        elif _LAUNCHES.match(event.name):
            launches += 1
    return _shares(times, kernels, launches)


def _of_cpu(profiler: Any) -> dict[str, float]:
    times: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    count = 0
    for entry in profiler.key_averages():
        times[kind_of(entry.key)] += entry.self_cpu_time_total
        count += entry.count
    return _shares(times, count, 0)


def _shares(times_us: dict[str, float], kernels: int, launches: int) -> dict[str, float]:
    total = sum(times_us.values())
    found = {"kernels": float(kernels), "launches": float(launches), "busy_ms": total / 1e3}
    return found | {f"{kind}_share": us / total if total else 0.0 for kind, us in times_us.items()}
