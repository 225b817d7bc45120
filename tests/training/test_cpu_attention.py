"""Attention while training on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bootpig_rt.training.cpu_attention import by_products

CPU = torch.device("cpu")


def fused_calls(device: torch.device) -> int:
    """How often torch's fused kernel runs in one attention, forward and backward."""
    q, k, v = (torch.randn(1, 2, 8, 16, requires_grad=True) for _ in range(3))
    with torch.profiler.profile() as seen, by_products(device):
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    return sum("flash_attention" in event.key for event in seen.key_averages())


def test_no_fused_kernel_runs_on_a_cpu() -> None:
    assert fused_calls(CPU) == 0
    assert fused_calls(torch.device("meta")) > 0


def test_attention_and_gradients_are_the_same() -> None:
    q, k, v = (torch.randn(2, 2, 8, 16, requires_grad=True) for _ in range(3))
    plain = F.scaled_dot_product_attention(q, k, v)
    wanted = torch.autograd.grad(plain.square().sum(), (q, k, v))
    with by_products(CPU):
        made = F.scaled_dot_product_attention(q, k, v)
    found = torch.autograd.grad(made.square().sum(), (q, k, v))
    torch.testing.assert_close(made, plain)
    torch.testing.assert_close(found, wanted)


def test_nothing_stays_changed_after_an_error() -> None:
    allowed: Any = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed(), torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(ZeroDivisionError), by_products(CPU):
        1 / (1 - allowed())
    assert (allowed(), torch.backends.cuda.flash_sdp_enabled()) == before
