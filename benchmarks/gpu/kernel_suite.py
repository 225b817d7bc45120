"""Measures attention with references: all ways on all shapes, right first and then fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from bootpig_rt.benchmarks.gpu.attention_inputs import (
    LARGEST_ERROR,
    AttentionInputs,
    error_of,
    make_inputs,
    oracle,
)
from bootpig_rt.benchmarks.gpu.attention_ways import AttentionWay, attention_ways
from bootpig_rt.benchmarks.gpu.budget import Budget
from bootpig_rt.benchmarks.gpu.plan import Plan
from bootpig_rt.benchmarks.gpu.report import GpuRow, Report, Status
from bootpig_rt.benchmarks.gpu.shapes import KernelCase
from bootpig_rt.benchmarks.gpu.timer import (
    Prepared,
    Timed,
    free_memory,
    rotations,
    time_in_turn,
    why_failed,
)

ROOFLINE = "gemm"


def run_kernels(plan: Plan, report: Report, budget: Budget, save: Callable[[], object]) -> None:
    """Add the rows of the sections `roofline`, `kernel` and `attention` to a report.

    Args:
        plan: What to measure.
        report: Gets the rows.
        budget: What there is no time for becomes a row that says so.
        save: Called after each shape.
    """
    plan.progress("roofline")
    report.rows.append(measure_roofline(plan))
    for case in plan.kernel_cases:
        reason = budget.why_not(until=plan.kernel_share)
        if reason is not None:
            report.rows.append(
                GpuRow("kernel", case.name, "all", "all ways", "skipped budget", reason)
            )
            continue
        plan.progress(f"attention {case.name}")
        report.rows += measure_case(plan, case, roofline_tflops(report))
        save()
    report.rows += attention_of_step(plan, report)


def measure_roofline(plan: Plan) -> GpuRow:
    """A large product of matrices: the rate that the device reaches in this type."""
    n = plan.gemm_size
    label = f"product of two {n} x {n} matrices"
    try:
        pairs = [
            [torch.randn(n, n, device=plan.device).to(plan.dtype) for _ in range(2)]
            for _ in range(2)
        ]
        with torch.no_grad():
            calls = [lambda a=a, b=b: a @ b for a, b in pairs]
            timed = time_in_turn({ROOFLINE: Prepared(calls, plan.device)}, plan.kernel_rounds)
    except Exception as error:  # a row says why
        return _failed("roofline", f"n{n}", ROOFLINE, label, error)
    found = timed[ROOFLINE]
    return GpuRow(
        "roofline",
        f"n{n}",
        ROOFLINE,
        label,
        ms=found.ms,
        samples_ms=found.samples_ms,
        values={"tflops": 2 * n**3 / found.ms / 1e9},
    )


def roofline_tflops(report: Report) -> float | None:
    """The measured rate."""
    return next((row.values.get("tflops") for row in report.of("roofline")), None)


def measure_case(
    plan: Plan,
    case: KernelCase,
    roofline: float | None,
    ways: list[AttentionWay] | None = None,
) -> list[GpuRow]:
    """One row a way.

    Args:
        plan: Device, type and rounds.
        case: The shape.
        roofline: TFLOP/s of the device.
        ways: All by default.
    """
    ways = attention_ways() if ways is None else ways
    try:
        sets = [make_inputs(case, plan.device, plan.dtype)]
        count = rotations(sets[0].nbytes, plan.device)
        sets += [make_inputs(case, plan.device, plan.dtype, seed=n) for n in range(1, count)]
        expected = oracle(sets[0])
    except Exception as error:  # no room for the inputs: the other shapes go on
        free_memory(plan.device)
        return [_failed("kernel", case.name, "all", "all ways", error)]
    rows: dict[str, GpuRow] = {}
    prepared: dict[str, Prepared] = {}
    for way in ways:
        missing = way.why_not(plan.device)
        if missing is not None:
            rows[way.name] = _row(case, way, "not available", missing)
            continue
        if way.compiles and not case.is_key:
            why = "compiled for seconds on each shape, so measured on the key shapes alone"
            rows[way.name] = _row(case, way, "skipped", why)
            continue
        try:
            error_found, ready = _prepare(way, sets, expected, plan.device)
        except Exception as error:  # of one way: the others go on
            rows[way.name] = _failed("kernel", case.name, way.name, way.label, error)
            free_memory(plan.device)
            continue
        limit = LARGEST_ERROR[plan.dtype]
        if not error_found <= limit:  # NaN is not right either
            why = f"relative error {error_found:.1e}, expected at most {limit:.0e}"
            rows[way.name] = _row(case, way, "wrong", why, error_found)
            continue
        rows[way.name] = _row(case, way, "ok", way.remark(plan.device), error_found)
        prepared[way.name] = ready
    with torch.no_grad():
        timed = time_in_turn(prepared, plan.kernel_rounds) if prepared else {}
    finished = [_with_time(rows[way.name], case, timed.get(way.name), roofline) for way in ways]
    prepared.clear()
    free_memory(plan.device)
    return finished


def _prepare(
    way: AttentionWay, sets: list[AttentionInputs], expected: Any, device: str
) -> tuple[float, Prepared]:
    with torch.no_grad():
        calls = [way.prepare(inputs) for inputs in sets]
        error_found = error_of(calls[0](), expected)
        return error_found, Prepared(calls, device)


def attention_of_step(plan: Plan, report: Report) -> list[GpuRow]:
    """Attention of the 16 layers of one step, from the times of the single shapes.

    The last column counts the first layer as the runtime computes it: rows of a picture are alike
    until they meet their text, so two rows in place of three. The merge of several references is
    behind the output projection and not in these sums.
    """
    groups: dict[tuple[int, int, int, int], list[KernelCase]] = {}
    for case in plan.kernel_cases:
        key = (case.size_px, case.references, case.plain_rows, case.guided_rows)
        groups.setdefault(key, []).append(case)
    rows = []
    for (size_px, references, plain, guided), cases in groups.items():
        if sum(case.level.layers for case in cases) != 16:
            continue
        name = f"{size_px}px-r{references}-b{plain + guided}"
        first = cases[0].name.rsplit("-", 1)[0] + "-b2"
        for way in attention_ways():
            times = [(case, report.ms("kernel", case.name, way.name)) for case in cases]
            if any(ms is None for _, ms in times):
                continue
            total = sum(case.level.layers * (ms or 0.0) for case, ms in times)
            values = {}
            shared, whole = report.ms("kernel", first, way.name), times[0][1]
            if plain == 1 and shared is not None and whole is not None:
                values["shared_first_ms"] = total - whole + shared
            rows.append(GpuRow("attention", name, way.name, way.label, ms=total, values=values))
    return rows


def _row(
    case: KernelCase, way: AttentionWay, status: Status, reason: str, error: float | None = None
) -> GpuRow:
    return GpuRow("kernel", case.name, way.name, way.label, status, reason, error=error)


def _with_time(
    row: GpuRow, case: KernelCase, timed: Timed | None, roofline: float | None
) -> GpuRow:
    from dataclasses import replace

    if timed is None:
        return row
    tflops = case.flops / timed.ms / 1e9
    values = {"tflops": tflops}
    if roofline:
        values["share_of_roofline"] = tflops / roofline
    return replace(
        row,
        ms=timed.ms,
        samples_ms=timed.samples_ms,
        reason=row.reason or timed.remark,
        values=values,
    )


def _failed(section: str, case: str, way: str, label: str, error: Exception) -> GpuRow:
    status, reason = why_failed(error)
    return GpuRow(section, case, way, label, cast("Status", status), reason)
