"""Measures pictures and steps: the ladder of the ablation, larger batches, a step's kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.benchmarks.gpu import ladder
from bootpig_rt.benchmarks.gpu.budget import Budget
from bootpig_rt.benchmarks.gpu.launches import profile_step
from bootpig_rt.benchmarks.gpu.our_way import OurWay, Subject
from bootpig_rt.benchmarks.gpu.picture_inputs import (
    PictureInputs,
    PictureWay,
    Stages,
    draw,
    make_picture_inputs,
)
from bootpig_rt.benchmarks.gpu.plan import PictureCase, Plan
from bootpig_rt.benchmarks.gpu.random_pair import pair_bytes
from bootpig_rt.benchmarks.gpu.report import GpuRow, Report, Status
from bootpig_rt.benchmarks.gpu.timer import (
    device_bytes,
    free_memory,
    synchronize,
    why_failed,
)

STAGES = ("text", "encode", "reference", "denoise", "decode")
REFERENCE_WAY = "sdpa"
"""What the latents of the other ways are compared with: the published arithmetic."""

EAGER_REMARK = "its attention is products and a softmax, so most of it counts as products"

LARGEST_DIFFERENCE = {torch.float32: 0.01, torch.float16: 0.5, torch.bfloat16: 0.9}
"""Of the latents of a picture, relative to what the references change in it: a way that did not
read them would score 1. In 16 bits, 25 steps with guidance and the choice between near-equal
references amplify rounding."""


def run_pictures(plan: Plan, report: Report, budget: Budget, save: Callable[[], object]) -> None:
    """Add the rows of the sections `picture`, `part` and `profile` to a report.

    Args:
        plan: What to measure.
        report: Gets the rows.
        budget: What there is no time for becomes a row that says so.
        save: Called after each case.
    """
    try:
        plan.progress("making a random pair on the device")
        builder = ladder.Builder(plan)
    except Exception as error:  # no room for the pair: nothing can be drawn
        report.rows.append(_failed("picture", "all", "all", "all ways", error))
        return
    for case in plan.picture_cases:
        reason = budget.why_not()
        if reason is not None:
            report.rows.append(
                GpuRow("picture", case.name, "all", "all ways", "skipped budget", reason)
            )
            continue
        _Case(plan, report, budget, builder, case).run(save)
        save()
    report.rows += _parts(report)
    if not any(rung.is_aside for rung, _ in ladder.wanted_ways(ladder.asides(), plan.ways)):
        return
    _Case(plan, report, budget, builder, plan.picture_cases[0]).run(save, is_aside=True)


class _Case:
    """One case on its way: the ways that are ready, and what their first pictures were."""

    def __init__(
        self, plan: Plan, report: Report, budget: Budget, builder: ladder.Builder, case: PictureCase
    ) -> None:
        self.plan, self.report, self.budget = plan, report, budget
        self.builder, self.case = builder, case
        self.inputs: PictureInputs = make_picture_inputs(plan, case, builder.pair)
        self.ways: dict[str, PictureWay] = {}
        self.rows: dict[str, GpuRow] = {}
        self.first: dict[str, FloatArray] = {}
        self.remarks: dict[str, str] = {}

    def run(self, save: Callable[[], object], *, is_aside: bool = False) -> None:
        """Draw once with each way, compare, then time all in turn; profile after all is saved."""
        ways = ladder.asides() if is_aside else ladder.ways_of(self.case.is_ladder)
        order = ladder.wanted_ways(ways, self.plan.ways)
        hidden = {ladder.way_name(*each) for each in order if is_aside and not each[0].is_aside}
        try:
            try:
                for rung, subject in order:
                    self._warm_up(rung, subject)
                self._compare()
                self._time()
            finally:  # an interrupted run keeps what it has
                self.report.rows += [row for row in self.rows.values() if row.way not in hidden]
            if self.case.is_ladder and not is_aside:
                save()
                self._profile()
        finally:
            for way in self.ways.values():
                way.forget()
            self.ways.clear()
            self.builder.known.table = None
            free_memory(self.plan.device)

    def _warm_up(self, rung: ladder.Rung, subject: Subject) -> None:
        """The first picture: memory, recordings, and the latents that are compared."""
        name, label = ladder.way_name(rung, subject), ladder.way_label(rung, subject)
        row = GpuRow("picture", self.case.name, name, label, "skipped", "not timed")
        if rung.cuda_only and not self.plan.device.startswith("cuda"):
            self.rows[name] = replace(row, status="not available", reason=rung.cuda_only)
            return
        reason = self.budget.why_not(needs_s=rung.needs_s)
        if reason is not None:
            self.rows[name] = replace(row, status="skipped budget", reason=reason)
            return
        self.plan.progress(f"picture {self.case.name} {name}")
        device = self.plan.device
        try:
            way = self.builder.way(rung, subject)
            if subject == "warm" and isinstance(way, OurWay):
                way.read_subject(self.inputs)  # no part of a picture of a known subject
            before = _reset_peak(device)
            known_bytes = self.builder.known.nbytes if subject == "warm" else 0
            start_s = time.perf_counter()
            self.first[name] = draw(way, self.inputs, Stages(device))
            values = {"first_ms": 1e3 * (time.perf_counter() - start_s)}
        except Exception as error:  # of one way: the others go on
            self.rows[name] = _failed("picture", self.case.name, name, label, error)
            free_memory(device)
            return
        now = device_bytes(device)
        if before is not None and now is not None:
            own_bytes = now[1] - before + known_bytes
            values["peak_bytes"] = float(pair_bytes(self.builder.pair) + own_bytes)
        self.ways[name] = way
        if not device.startswith("cuda"):
            self.remarks[name] = rung.on_cpu
        self.rows[name] = replace(row, values=values)

    def _compare(self) -> None:
        """The first latents of each way with those of the published arithmetic."""
        known = self.builder.expected
        published, plain = self.first.get(REFERENCE_WAY), self.first.get(ladder.TEXT_TO_IMAGE)
        if published is not None and plain is not None:
            known.setdefault(self.case.references, (published, plain))
        for name, latents in self.first.items():
            if not np.isfinite(latents).all():
                self._is_wrong(name, float("nan"), "the latents hold NaN or Inf")
            elif self.case.references in known and name != ladder.TEXT_TO_IMAGE:
                expected, without = known[self.case.references]
                effect = float(np.linalg.norm(expected - without))
                # The first picture of every batch has the same noise and prompt.
                difference = float(np.linalg.norm(latents[:1] - expected)) / effect
                limit = LARGEST_DIFFERENCE[self.plan.dtype]
                if difference <= limit:
                    self.rows[name] = replace(self.rows[name], error=difference)
                    continue
                why = f"latents differ by {difference:.1e} of what the references change"
                self._is_wrong(name, difference, f"{why}, expected at most {limit:g}")

    def _is_wrong(self, name: str, difference: float, why: str) -> None:
        self.rows[name] = replace(self.rows[name], status="wrong", reason=why, error=difference)
        if name in self.ways:
            self.ways.pop(name).forget()

    def _time(self) -> None:
        """Rounds of all ways in turn; the budget may end them early."""
        names = list(self.ways)
        rng = np.random.default_rng(0)
        samples: dict[str, list[float]] = {name: [] for name in names}
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        try:
            for number in range(self.plan.picture_rounds):
                if number and self.budget.why_not() is not None:
                    break
                for place in rng.permutation(len(names)):
                    name = names[place]
                    self.plan.progress(f"picture {self.case.name} round {number + 1} {name}")
                    self._draw_timed(name, samples[name], stages[name])
        finally:  # an interrupted run keeps the rounds that it has
            for name in names:
                if samples[name] and self.rows[name].status == "skipped":
                    self.rows[name] = self._timed(self.rows[name], samples[name], stages[name])

    def _draw_timed(self, name: str, samples: list[float], stages: list[dict[str, float]]) -> None:
        if name not in self.ways:  # it failed in a round before
            return
        device = self.plan.device
        watch = Stages(device)
        try:
            synchronize(device)
            start_s = time.perf_counter()
            draw(self.ways[name], self.inputs, watch)
            synchronize(device)
        except Exception as error:  # of one way: the others go on
            status, reason = why_failed(error)
            self.rows[name] = replace(self.rows[name], status=cast("Status", status), reason=reason)
            self.ways.pop(name).forget()
            return
        samples.append(1e3 * (time.perf_counter() - start_s))
        stages.append(watch.ms)

    def _timed(self, row: GpuRow, samples: list[float], stages: list[dict[str, float]]) -> GpuRow:
        median = float(np.median(samples))
        values = dict(row.values)
        for stage in STAGES:
            if stage in stages[0]:
                values[f"{stage}_ms"] = float(np.median([each[stage] for each in stages]))
        values["step_ms"] = values["denoise_ms"] / self.plan.steps
        values["ms_a_picture"] = median / self.case.batch
        return replace(
            row,
            status="ok",
            reason=self._remark(row),
            ms=median,
            samples_ms=tuple(samples),
            values=values,
        )

    def _remark(self, row: GpuRow) -> str:
        compared = row.error is not None or row.way == ladder.TEXT_TO_IMAGE
        missing = "" if compared else f"not compared: {REFERENCE_WAY} was not drawn"
        return "; ".join(filter(None, (self.remarks.get(row.way, ""), missing)))

    def _profile(self) -> None:
        """Kernels of one step, for the ways that tell most."""
        names = (
            ladder.PUBLISHED,
            REFERENCE_WAY,
            "fused_warm",
            f"{ladder.OURS}_warm",
            ladder.TEXT_TO_IMAGE,
        )
        for name in names:
            if name not in self.ways:
                continue
            label = self.rows[name].label
            reason = self.budget.why_not()
            if reason is not None:
                self.report.rows.append(
                    GpuRow("profile", self.case.name, name, label, "skipped budget", reason)
                )
                continue
            self.plan.progress(f"profile {self.case.name} {name}")
            try:
                values = profile_step(self.ways[name], self.inputs, self.plan.device)
            except Exception as error:  # a profiler that this machine does not allow
                self.report.rows.append(_failed("profile", self.case.name, name, label, error))
                continue
            reason = EAGER_REMARK if name == ladder.PUBLISHED else ""
            self.report.rows.append(
                GpuRow("profile", self.case.name, name, label, reason=reason, values=values)
            )


def _parts(report: Report) -> list[GpuRow]:
    """Text, images in and images out by themselves, from the stages of two ways."""
    rows = []
    for way, who in ((REFERENCE_WAY, "published"), (f"{ladder.OURS}_cold", "ours")):
        for row in report.of("picture"):
            if row.way != way or row.status != "ok":
                continue
            for stage in ("text", "encode", "reference", "decode"):
                ms = row.values.get(f"{stage}_ms")
                if ms is not None:
                    rows.append(
                        GpuRow("part", row.case, f"{stage}_{who}", f"{stage}, {who}", ms=ms)
                    )
    return rows


def _reset_peak(device: str) -> int | None:
    found = device_bytes(device)
    if found is None:
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return found[0]


def _failed(section: str, case: str, way: str, label: str, error: Exception) -> GpuRow:
    status, reason = why_failed(error)
    return GpuRow(section, case, way, label, cast("Status", status), reason)
