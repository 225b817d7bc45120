"""The Base U-Net's attention with the fused kernels against its eager path."""

from __future__ import annotations

import logging
from typing import Any, get_args

import pytest
import torch
from diffusers.models.attention_processor import Attention

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels import choose, ops
from bootpig_rt.models.attention import reference_self_attention
from bootpig_rt.models.rows import plan_rows

REFS = {
    "one": [[-1], [0], [0]],
    "mixed": [[1, 0], [-1, -1], [2, -1]],
    "two": [[-1, 1], [0, 1]],
}


@pytest.mark.parametrize(
    ("refs", "merge"),
    [
        *(("mixed", merge) for merge in get_args(Merge)),
        *((refs, merge) for refs in ("one", "two") for merge in ("concat", "argmax")),
    ],
)
def test_fused_equals_eager(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refs: str,
    merge: Merge,
) -> None:
    torch.manual_seed(0)
    attn: Any = Attention(query_dim=32, heads=2, dim_head=16)
    tokens, table = torch.randn(len(REFS[refs]), 40, 32), torch.randn(2, 3, 2, 21, 16)
    plan = plan_rows(torch.tensor(REFS[refs]), 3)

    def attend() -> torch.Tensor:
        with torch.no_grad():
            return reference_self_attention(
                attn, plan.sort(tokens), (table[0], table[1]), plan, merge=merge
            )

    monkeypatch.setenv(choose.VARIABLE, "eager")
    eager = attend()
    monkeypatch.setenv(choose.VARIABLE, "fused")
    choose._report.cache_clear()
    with caplog.at_level(logging.INFO, logger="bootpig_rt"):
        fused = attend()
    assert "fused Triton kernels" in caplog.text
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("merge", ["concat", "argmax"])  # joint attention, and separate
def test_the_kernels_get_the_table_itself_and_the_entry(
    monkeypatch: pytest.MonkeyPatch, merge: Merge
) -> None:
    """No copy of the table and no other entry than the one on the device."""
    torch.manual_seed(0)
    attn: Any = Attention(query_dim=32, heads=2, dim_head=16)
    keys, values = torch.randn(2, 4, 3, 2, 13, 16)  # four entries
    plan = plan_rows(torch.tensor([[-1, -1], [1, -1], [0, 2]]), 3)
    tokens, entry = torch.randn(3, 20, 32), torch.tensor([2], dtype=torch.int32)
    seen = []

    def watch(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            seen.append([args[3].data_ptr(), args[4].data_ptr(), args[6].data_ptr()])
            return real(*args, **options)

        return call

    for name in ("reference_attention", "reference_attention_deltas"):
        monkeypatch.setattr(ops, name, watch(getattr(ops, name)))
    monkeypatch.setenv(choose.VARIABLE, "fused")
    with torch.no_grad():
        whole = reference_self_attention(
            attn, tokens, (keys, values), plan, merge=merge, entry=entry
        )
        alone = reference_self_attention(attn, tokens, (keys[2], values[2]), plan, merge=merge)
    assert seen[0] == [keys.data_ptr(), values.data_ptr(), entry.data_ptr()]
    assert torch.equal(whole, alone)


def test_autograd_takes_the_eager_path_and_the_fused_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    attn: Any = Attention(query_dim=32, heads=2, dim_head=16)
    keys, values = torch.randn(2, 3, 2, 13, 16)
    plan = plan_rows(torch.tensor([[-1, -1], [0, 2]]), 3)
    tokens = torch.randn(2, 20, 32, requires_grad=True)
    for choice in ("auto", "fused"):
        monkeypatch.setenv(choose.VARIABLE, choice)
        if choice == "fused":
            with pytest.raises(BackendUnavailable, match="the kernels have no gradients"):
                reference_self_attention(attn, tokens, (keys, values), plan, merge="softmax")
            continue
        out = reference_self_attention(attn, tokens, (keys, values), plan, merge="softmax")
        (gradient,) = torch.autograd.grad(out.square().sum(), [tokens])
        assert gradient.abs().sum() > 0
