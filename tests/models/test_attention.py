"""Merging what several references change: ties, slots without a reference, and the type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bootpig_rt.models.attention import _mean, _merge, change_norms, take_reference


def test_of_equal_changes_the_first_is_taken() -> None:
    change = torch.zeros(1, 3, 2, 4)
    change[0, 1, 0, 0] = 2.0
    change[0, 2, 0, 3] = 2.0  # as large, another direction
    change[0, :, 1, 0] = torch.tensor([1.0, 1.0, 1.0])
    change[0, :, 1, 1] = torch.tensor([1.0, -1.0, 1.0])
    merged = _merge(change, "argmax")
    assert merged[0, 0].tolist() == [2.0, 0.0, 0.0, 0.0]
    assert merged[0, 1].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("merge", ["argmax", "softmax"])
def test_norms_are_compared_in_float32(merge: Any) -> None:
    """In float16 both norms would be infinite, and the first would win."""
    change = torch.full((1, 2, 1, 64), 9000.0, dtype=torch.float16)
    change[0, 1] = 18000.0
    merged = _merge(change, merge)
    assert merged.dtype == torch.float32
    assert torch.equal(merged[0, 0], torch.full((64,), 18000.0))


def test_a_slot_without_a_reference_is_never_taken() -> None:
    change = torch.rand(2, 4, 5, 8)
    present = torch.tensor([[True, True, False, False], [True, True, True, False]])
    for merge in ("argmax", "softmax"):
        padded = _merge(change, merge, present)
        for row, count in enumerate((2, 3)):
            alone = _merge(change[row : row + 1, :count], merge)
            torch.testing.assert_close(padded[row : row + 1], alone, rtol=1e-6, atol=1e-7)
    change[~present] = torch.nan
    for row, count in enumerate((2, 3)):
        mean = _mean(change, present)[row]
        torch.testing.assert_close(mean, change[row, :count].mean(dim=0), rtol=1e-6, atol=1e-7)


def test_a_rule_of_ones_own_sees_what_each_reference_changes() -> None:
    change = torch.rand(1, 3, 4, 8)
    seen: list[Any] = []

    def second(given: torch.Tensor) -> torch.Tensor:
        seen.append(change_norms(given))
        return take_reference(given, torch.ones(1, 4, dtype=torch.int64))

    assert torch.equal(_merge(change, second), change[:, 1])
    assert torch.equal(seen[0], torch.linalg.vector_norm(change, dim=-1))
