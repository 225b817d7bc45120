"""The targets of the kernels and the sampler on an H100, next to what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bootpig_rt.benchmarks.gpu import ladder
from bootpig_rt.benchmarks.gpu.attention_ways import attention_ways
from bootpig_rt.benchmarks.gpu.plan import Plan
from bootpig_rt.benchmarks.gpu.report import Report

Verdict: TypeAlias = Literal["met", "not met", "not measured"]


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: What is measured.
        limit: The number to reach.
        is_at_least: Larger is better; otherwise smaller.
        unit: Of both numbers.
        measured: What was found; None: nothing.
        remark: What it was compared with.
        is_rehearsal: The number means nothing.
    """

    name: str
    limit: float
    is_at_least: bool
    unit: str
    measured: float | None
    remark: str = ""
    is_rehearsal: bool = False

    @property
    def verdict(self) -> Verdict:
        """Was it reached?"""
        if self.measured is None or self.is_rehearsal:
            return "not measured"
        is_met = self.measured >= self.limit if self.is_at_least else self.measured <= self.limit
        return "met" if is_met else "not met"

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"{'at least' if self.is_at_least else 'at most'} {self.limit:g} {self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a number of a rehearsal is left out."""
        measured = None if self.is_rehearsal else self.measured
        return {
            "name": self.name,
            "wanted": self.wanted,
            "measured": None if measured is None else float(f"{measured:.4g}"),
            "unit": self.unit,
            "verdict": self.verdict,
            "remark": self.remark,
        }


def evaluate(plan: Plan, report: Report) -> list[Target]:
    """All targets, from the rows of a report; a rehearsal has its toy shapes in their place."""
    cases = [case for case in plan.kernel_cases if case.rows == 3]
    size_px = min(case.size_px for case in cases)
    most = max(case.references for case in cases)
    tokens = max(case.level.tokens for case in cases if case.size_px == size_px)

    def kernel(references: int) -> str:
        return f"{size_px}px-n{tokens}-r{references}-b3"

    def faster(case: str, than: str) -> float | None:
        return _ratio(report.ms("kernel", case, than), report.ms("kernel", case, "fused"))

    best = best_composition(report, kernel(1))
    attention = f"{size_px}px-r1-b3"
    step_ms, how = _attention_of_step(report, attention)
    picture = next((each.name for each in plan.picture_cases if each.batch == 1), "r1-b1")

    def picture_ms(way: str) -> float | None:
        return report.ms("picture", picture, way)

    warm = picture_ms(f"{ladder.OURS}_warm")
    make: Callable[..., Target] = Target
    found = [
        make(
            "kernel against the best stock composition, 4096 tokens, 1 reference",
            0.95,
            True,
            "x",
            None if best is None else faster(kernel(1), best),
            "" if best is None else f"against {best}",
        ),
        make(
            "kernel against the published path, 4096 tokens, 1 reference",
            1.8,
            True,
            "x",
            faster(kernel(1), "published"),
        ),
        make(
            "kernel against the published path, 4096 tokens, 4 references",
            2.2,
            True,
            "x",
            faster(kernel(most), "published"),
        ),
        make("attention of a step, 1 reference, 3 rows", 1.5, False, "ms", step_ms, how),
        make(
            "picture of 25 steps, known subject, against the published way",
            5.0,
            True,
            "x",
            _ratio(picture_ms(ladder.PUBLISHED), warm),
            "eager float16",
        ),
        make(
            "the same, against plain text-to-image on the same runtime",
            1.6,
            False,
            "x",
            _ratio(warm, picture_ms(ladder.TEXT_TO_IMAGE)),
        ),
        make("the same, time", 0.25, False, "s", None if warm is None else warm / 1e3),
    ]
    from dataclasses import replace

    return [replace(target, is_rehearsal=plan.is_rehearsal) for target in found]


def best_composition(report: Report, case: str) -> str | None:
    """The fastest way of stock kernels that is a whole composition; bounds do not count."""
    timed = [
        (ms, way.name)
        for way in attention_ways()
        if way.kind == "composition" and (ms := report.ms("kernel", case, way.name)) is not None
    ]
    return min(timed)[1] if timed else None


def _attention_of_step(report: Report, case: str) -> tuple[float | None, str]:
    """As the runtime computes it, the first layer shared between rows, where that was measured."""
    for row in report.of("attention", case):
        if row.way == "fused":
            shared = row.values.get("shared_first_ms")
            if shared is not None:
                return shared, f"first layer shared; {row.ms or 0:.3g} ms with all rows apart"
            return row.ms, "all rows apart"
    return None, ""


def _ratio(base: float | None, other: float | None) -> float | None:
    return None if not base or not other else base / other
