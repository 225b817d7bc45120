"""Attention while training on a CPU: two products and a softmax, not torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def by_products(device: torch.device) -> Iterator[None]:
    """Within it attention on a CPU is made of products; on other devices nothing changes.

    The fused kernel is quick forward; backward it took two fifths of a step of the small U-Net
    (torch 2.13, AMX, bfloat16), where products took a tenth. They stay in bfloat16 under autocast,
    as the fused kernel's are.
    """
    if device.type != "cpu":
        yield
        return
    allow = torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp  # of the CPU as well
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    allow(True)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        allow(before)
