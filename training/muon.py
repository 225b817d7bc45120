"""Muon: matrices move by their momentum made orthogonal, all other weights as AdamW moves them.

A kernel of a convolution is the matrix of its output channels and all that each reads. Jordan et
al. (2024), "Muon: An optimizer for hidden layers in neural networks"; the size of a step as Liu et
al. (2025), "Muon is scalable for LLM training", section 2.2, so that rates and decay are those of
AdamW. torch's own refuses kernels of convolutions, and does all of the work in each process.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that is applied again and again: singular values above 0 go near 1."""
ITERATIONS = 5
MOMENTUM = 0.95
STEP_RMS = 0.2
"""Root of the mean square of a matrix's step at rate 1, about that of AdamW's steps."""


class Muon(torch.optim.Optimizer):
    """See the module; `others` are matrices that move as AdamW moves them, such as embeddings."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        others: Collection[int],
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
    ) -> None:
        """Take groups with an `lr` each; `others` holds the `id` of each such parameter."""
        self._others = frozenset(others)
        super().__init__(groups, {"betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient; `closure` must be None."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in moved if p.ndim >= 2 and id(p) not in self._others]
            taken = {id(p) for p in matrices}
            self._step_matrices(matrices, group)
            self._step_others([p for p in moved if id(p) not in taken], group)

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            by_shape.setdefault(p.flatten(1).shape, []).append(p)
        stacks = [torch.stack([self._step_of(p) for p in alike]) for alike in by_shape.values()]
        for alike, directions in zip(by_shape.values(), shared_out(stacks), strict=True):
            scale = group["lr"] * STEP_RMS * max(directions.shape[1:]) ** 0.5
            for p, direction in zip(alike, directions, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction.view_as(p), alpha=-scale)

    def _step_of(self, p: Tensor) -> Tensor:
        """Nesterov's momentum of a parameter, as a matrix."""
        assert p.grad is not None
        if not self.state[p]:
            self.state[p]["exp_avg"] = torch.zeros_like(p)
        momentum: Tensor = self.state[p]["exp_avg"]
        momentum.lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(momentum, MOMENTUM).flatten(1)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros(()),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        states = [self.state[p] for p in parameters]
        first, second = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def shared_out(stacks: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of stacks that all processes hold, each of which works on its share of them."""
    if not distributed.is_available() or not distributed.is_initialized():
        return [orthogonal(stack) for stack in stacks]
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    found = [torch.zeros_like(stack, dtype=torch.bfloat16) for stack in stacks]
    for stack, directions in zip(stacks, found, strict=True):
        if len(mine := stack[rank::processes]):
            directions[rank::processes] = orthogonal(mine)
    # What another process works on is zero here, so that a sum joins them, and rounds nothing.
    flat = torch.cat([directions.flatten() for directions in found])
    distributed.all_reduce(flat)
    parts = flat.split([directions.numel() for directions in found])
    return [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of matrices U S V^T, [N, rows, columns], in bfloat16.

    Singular values come out between about 0.7 and 1.2, those near 0 below.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp(min=1e-7).bfloat16()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
