"""A whole run: parts in order, the file written after each, and the targets at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from bootpig_rt.benchmarks.gpu.budget import Budget
from bootpig_rt.benchmarks.gpu.kernel_suite import run_kernels
from bootpig_rt.benchmarks.gpu.merge_suite import run_merges
from bootpig_rt.benchmarks.gpu.picture_suite import run_pictures
from bootpig_rt.benchmarks.gpu.plan import Plan
from bootpig_rt.benchmarks.gpu.report import Report, describe_device
from bootpig_rt.benchmarks.gpu.shapes import HEAD_DIM
from bootpig_rt.benchmarks.gpu.targets import Target, evaluate
from bootpig_rt.kernels import choose

OURS = ("fused", "shared_rows_cold", "shared_rows_warm", "text_to_image")
"""Ways whose failure is a failure of the run."""


def run_plan(plan: Plan, output: Path | None = None) -> tuple[Report, list[Target]]:
    """Measure.

    Args:
        plan: What.
        output: JSON file, written whole after each part and when the run is interrupted.

    Returns:
        The report, and the targets with what was measured.

    Raises:
        StorageError: The file cannot be written.
    """
    with _threads(plan):
        return _run(plan, output)


def _run(plan: Plan, output: Path | None) -> tuple[Report, list[Target]]:
    report = Report(plan.is_rehearsal, describe_device(plan.device), _settings(plan))
    budget = Budget(plan.seconds)

    def save() -> None:
        report.targets = [target.to_dict() for target in evaluate(plan, report)]
        report.save(output)

    save()  # a file that cannot be written is an error at once, not after nine minutes
    try:
        if "kernel" in plan.parts:
            run_kernels(plan, report, budget, save)
            report.rows += run_merges(plan)
            save()
        if "picture" in plan.parts:
            run_pictures(plan, report, budget, save)
        report.is_finished = True
    finally:
        save()
    return report, evaluate(plan, report)


def failures(report: Report) -> list[str]:
    """What is wrong about our own ways: they failed, or computed something else."""
    return [
        f"{row.section} {row.case} {row.way}: {row.status}, {row.reason}"
        for row in report.rows
        if row.way in OURS and row.status in ("wrong", "failed")
    ]


@contextlib.contextmanager
def _threads(plan: Plan) -> Iterator[None]:
    """One thread for toy sizes: several only wait for each other, and long on a busy machine."""
    before = torch.get_num_threads()
    if plan.is_rehearsal:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settings(plan: Plan) -> dict[str, str | int | float]:
    is_fused = choose.is_fused(torch.empty(1, 1, 1, HEAD_DIM, device=plan.device, dtype=plan.dtype))
    return {
        "precision": str(plan.dtype).removeprefix("torch."),
        "attention": "fused kernels" if is_fused else "eager twins of the kernels",
        "size_px": plan.size_px,
        "steps": plan.steps,
        "solver": "unipc",
        "kernel_rounds": plan.kernel_rounds,
        "picture_rounds": plan.picture_rounds,
        "budget_s": plan.seconds,
        "parts": ", ".join(plan.parts),
    }
