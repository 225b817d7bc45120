"""Muon against its definition by singular values, and AdamW where it is one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bootpig_rt.training import muon as module
from bootpig_rt.training.muon import MOMENTUM, STEP_RMS, Muon, orthogonal, shared_out


def muon(parameters: list[nn.Parameter], *, others: tuple[int, ...] = (), lr: float = 0.01) -> Muon:
    return Muon(
        [{"params": parameters, "lr": lr}], others=others, betas=(0.9, 0.99), weight_decay=0.1
    )


@given(
    rows=st.integers(2, 24),
    columns=st.integers(2, 24),
    count=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_singular_values_become_one_and_their_directions_stay(
    rows: int, columns: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, rows, min(rows, columns)), (count, columns, min(rows, columns))
    left, right = (torch.linalg.qr(torch.randn(each, generator=generator)).Q for each in shape)
    values = 0.2 + torch.rand(count, 1, min(rows, columns), generator=generator)
    found = orthogonal(left * values @ right.mT).float()
    inside = left.mT @ found @ right
    diagonal = inside.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 0.1
    assert found.shape == (count, rows, columns)


def test_a_matrix_moves_against_its_momentum_and_by_the_size_of_a_step_of_adamw() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(16, 4, 3, 3, generator=generator))
    start, gradient = weight.detach().clone(), torch.randn(16, 4, 3, 3, generator=generator)
    weight.grad = gradient
    muon([weight]).step()
    step = weight.detach() - start * (1 - 0.01 * 0.1)
    assert float((step * gradient).sum()) < 0
    # Sixteen rows of 36, all singular values near one: the mean square is 16 / (16 * 36), times 36.
    assert float(step.square().mean().sqrt()) == pytest.approx(0.01 * STEP_RMS, rel=0.2)


def test_momentum_remembers_former_gradients() -> None:
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = muon([weight])
    first, second = torch.eye(8), torch.ones(8, 8)
    for gradient in (first, second):
        weight.grad = gradient
        optimizer.step()
    expected = MOMENTUM * (1 - MOMENTUM) * first + (1 - MOMENTUM) * second
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], expected)


def test_vectors_and_embeddings_move_as_adamw_moves_them() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes, steps = [(6,), (5, 3)], 3
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = muon(ours, others=(id(ours[1]),))
    adamw = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(steps):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


def test_weights_without_a_gradient_stay_and_a_closure_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = muon([weight])
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3, 3))
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_work_and_all_hold_the_whole(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    stacks = [torch.randn(shape, generator=generator) for shape in [(5, 4, 9), (1, 6, 3)]]
    sent: list[torch.Tensor] = []

    def in_process(rank: int, all_reduce: Callable[[torch.Tensor], object]) -> list[torch.Tensor]:
        group = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda: rank,
            get_world_size=lambda: processes,
            all_reduce=all_reduce,
        )
        monkeypatch.setattr(module, "distributed", group)
        return shared_out(stacks)

    for rank in range(processes):
        in_process(rank, lambda flat: sent.append(flat.clone()))
    work = [int((flat != 0).sum()) for flat in sent]
    assert max(work) < sum(work)
    found = in_process(0, lambda flat: flat.copy_(torch.stack(sent).sum(0)))
    for stack, directions in zip(stacks, found, strict=True):
        torch.testing.assert_close(directions, orthogonal(stack), atol=0.02, rtol=0.02)
