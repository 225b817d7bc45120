"""Suite `kernels`: reference attention by itself, and what the compiled kernels need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels.ops import reference_attention

NAME = "kernels"
HELP = "reference attention beside concat and the published double attention; compiled resources"

_SHAPES = ((256, 2, 32), (64, 4, 32), (1024, 5, 64))
"""Tokens, heads and head dim of a row: two of a small pair, one of SD 2.1 at 256 px."""

_TARGETS = (80, 90)
_LIMIT = 1e-5


def run(settings: Settings) -> SuiteResult:
    """Compare the ways with each other, time them, then compile a few kernels."""
    rows: list[Row] = []
    checks: list[Check] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch_threads(settings.threads), torch.inference_mode():
        for tokens, heads, size in _SHAPES[: 1 if settings.is_smoke else None]:
            inputs = _Inputs(tokens, heads, size, device)
            name = f"{tokens} tokens"
            joint = inputs.ours()
            error = (joint - inputs.concat()).norm() / joint.norm()
            checks.append(Check(f"{name}: ours, concat", float(error), _LIMIT))
            rows += _times(settings, inputs, name)
        rows += _resources(settings)
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={"device": device, "rows": 3, "references": 1, "rounds": settings.rounds},
        checks=tuple(checks),
    )


class _Inputs:
    """Three rows, uncond, image and text_image, and one reference in a table of one entry."""

    def __init__(self, tokens: int, heads: int, size: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.q, self.k, self.v = (random(3, heads, tokens, size) for _ in range(3))
        self.ref_k, self.ref_v = (random(1, 1, heads, tokens, size) for _ in range(2))
        self.ref_of_row = torch.tensor([[-1], [0], [0]], dtype=torch.int32, device=device)
        self.step = torch.zeros(1, dtype=torch.int32, device=device)

    def ours(self) -> Tensor:
        """The operator: fused on CUDA, its eager twin on a CPU."""
        return reference_attention(
            self.q, self.k, self.v, self.ref_k, self.ref_v, self.ref_of_row, self.step,
            checks_indices=False,
        )  # fmt: skip

    def concat(self) -> Tensor:
        """Stock attention over concatenated keys and values, the uncond row apart."""
        return _joined([self._plain(slice(0, 1)), self._with_reference()])

    def published(self) -> Tensor:
        """All rows without the reference, then the guided ones again with it."""
        plain = self._plain(slice(0, 3))
        return _joined([plain[:1], plain[1:] + (self._with_reference() - plain[1:])])

    def _plain(self, rows: slice) -> Tensor:
        return scaled_dot_product_attention(self.q[rows], self.k[rows], self.v[rows])

    def _with_reference(self) -> Tensor:
        keys, values = (
            torch.cat([own[1:], reference[0].expand(2, -1, -1, -1)], dim=2)
            for own, reference in ((self.k, self.ref_k), (self.v, self.ref_v))
        )
        return scaled_dot_product_attention(self.q[1:], keys, values)


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows together, heads joined: [B, N, H * D]."""
    return torch.cat(parts).transpose(1, 2).flatten(-2)


def _times(settings: Settings, inputs: _Inputs, name: str) -> list[Row]:
    def repeated(function: Callable[[], Tensor]) -> None:
        for _ in range(_REPEATS):
            function()
        if inputs.q.is_cuda:
            torch.cuda.synchronize()

    ways = [
        Way(
            f"{name} {key}",
            label,
            partial(repeated, function),
            _REPEATS,
            group=f"{name}, three rows",
        )
        for key, label, function in (
            ("published", "attention twice, as published", inputs.published),
            ("concat", "concatenated keys, stock attention", inputs.concat),
            ("ours", "ours", inputs.ours),
        )
    ]
    timed = time_ways(ways, settings.rounds, progress=settings.progress)
    return list(with_ratios(timed, to=f"{name} published"))


_REPEATS = 20


def _resources(settings: Settings) -> list[Row]:
    """A few kernels compiled for GPUs that need not be here; all are in `kernels/resources.md`."""
    from bootpig_rt.kernels.compile import compile_one, variants_of

    wanted = partial(variants_of, dtypes=["float16"], head_dims=[64], channels=[320])
    rows: list[Row] = []
    group = "compiled, no GPU needed"
    for architecture in _TARGETS:
        try:
            for variant in islice(wanted(architecture), 1 if settings.is_smoke else 4):
                needs = compile_one(variant).resources
                values = {
                    "registers": float(needs.registers),
                    "stack_bytes": float(needs.stack_bytes),
                    "spills": float(needs.spills),
                    "shared_bytes": float(needs.shared_bytes),
                    "tensor_core_instructions": float(sum(needs.tensor_core.values())),
                }
                label = f"sm_{architecture} {variant.name}"
                rows.append(Row(label.replace(" ", "/"), label, group, values=values))
        except BackendUnavailable as error:
            status = {"status": str(error)}
            rows.append(Row(f"sm_{architecture}", f"sm_{architecture}", group, notes=status))
    return rows
