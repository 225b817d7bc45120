"""Measures the merge of several references behind the output projection: fused and eager."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bootpig_rt.benchmarks.gpu.attention_inputs import LARGEST_ERROR
from bootpig_rt.benchmarks.gpu.plan import Plan
from bootpig_rt.benchmarks.gpu.report import GpuRow, Status
from bootpig_rt.benchmarks.gpu.shapes import KernelCase
from bootpig_rt.benchmarks.gpu.timer import (
    Prepared,
    free_memory,
    rotations,
    time_in_turn,
    why_failed,
)
from bootpig_rt.kernels import eager_ops, ops

MODE = "argmax"
LABELS = {"fused": "fused merge (ours)", "eager": "norm, argmax, select and add in torch"}


@dataclass(frozen=True)
class MergeInputs:
    """What the merge reads; see `bootpig_rt.kernels.ops.reference_merge`."""

    projected: Tensor
    change: Tensor
    ref_of_row: Tensor
    first: int

    def fused(self) -> Tensor:
        """With the kernel."""
        return ops.reference_merge(
            self.projected, self.change, self.ref_of_row, first_delta_row=self.first, merge=MODE
        )

    def eager(self) -> Tensor:
        """In plain torch."""
        return eager_ops.merge(self.projected, self.change, self.ref_of_row, self.first, MODE)

    def oracle(self) -> Tensor:
        """In float32."""
        return eager_ops.merge(
            self.projected.float(), self.change.float(), self.ref_of_row, self.first, MODE
        )


def run_merges(plan: Plan) -> list[GpuRow]:
    """Rows of the section `merge`, for the shapes of one picture with most references."""
    most = max(case.references for case in plan.kernel_cases)
    size_px = min(case.size_px for case in plan.kernel_cases)
    rows: list[GpuRow] = []
    for case in plan.kernel_cases:
        wanted = (most, size_px, 3)
        if most > 1 and (case.references, case.size_px, case.rows) == wanted:
            plan.progress(f"merge {case.name}")
            rows += measure_merge(plan, case)
    return rows


def make_merge_inputs(case: KernelCase, plan: Plan, seed: int) -> MergeInputs:
    """Random inputs in which no two references change a token by about as much.

    Rounding to float16 may then not decide which is chosen.
    """
    channels = case.level.heads * case.level.head_dim
    generator = torch.Generator(plan.device).manual_seed(seed)
    shape = (case.guided_rows, case.references, case.level.tokens, channels)
    projected = torch.randn(
        case.rows, case.level.tokens, channels, device=plan.device, generator=generator
    )
    change = torch.randn(*shape, device=plan.device, generator=generator)
    token = torch.arange(case.level.tokens, device=plan.device)
    number = torch.arange(case.references, device=plan.device)[:, None]
    change *= (2.0 ** ((token + number) % case.references))[None, :, :, None]
    refs = [[-1] * case.references] * case.plain_rows
    refs += [list(range(case.references))] * case.guided_rows
    return MergeInputs(
        projected.to(plan.dtype),
        change.to(plan.dtype),
        torch.tensor(refs, dtype=torch.int32, device=plan.device),
        case.plain_rows,
    )


def measure_merge(plan: Plan, case: KernelCase) -> list[GpuRow]:
    """Both ways on one shape."""
    try:
        with torch.no_grad():
            sets = [make_merge_inputs(case, plan, 0)]
            count = rotations(sets[0].projected.nbytes + sets[0].change.nbytes, plan.device)
            sets += [make_merge_inputs(case, plan, seed) for seed in range(1, count)]
            expected = sets[0].oracle()
            calls = {
                "fused": [inputs.fused for inputs in sets],
                "eager": [inputs.eager for inputs in sets],
            }
            errors = {
                name: float((each[0]().float() - expected).norm() / expected.norm())
                for name, each in calls.items()
            }
            prepared = {name: Prepared(each, plan.device) for name, each in calls.items()}
            timed = time_in_turn(prepared, plan.kernel_rounds)
    except Exception as error:  # a row says why, and the rest goes on
        free_memory(plan.device)
        status, reason = why_failed(error)
        return [GpuRow("merge", case.name, "all", "both", cast("Status", status), reason)]
    limit = LARGEST_ERROR[plan.dtype]
    rows: list[GpuRow] = []
    for name, found in timed.items():
        is_right = errors[name] <= limit
        rows.append(
            GpuRow(
                "merge",
                case.name,
                name,
                LABELS[name],
                "ok" if is_right else "wrong",
                "" if is_right else f"relative error {errors[name]:.1e}, at most {limit:.0e}",
                ms=found.ms if is_right else None,
                samples_ms=found.samples_ms if is_right else (),
                error=errors[name],
            )
        )
    return rows
