"""From a pair's curve to settings: what this machine takes for a step, and the choice.

A curve says what settings keep, and how much work they are; a few short pictures say what a step
takes here. So a curve that was measured on one machine serves others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bootpig_rt.backends.base import PairSpec
from bootpig_rt.curve import Curve, CurvePoint, settings_of
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.plan import Plan
from bootpig_rt.engine.rows import PictureBranches, plan_guidance
from bootpig_rt.errors import ParameterError, shown
from bootpig_rt.request import PictureSettings, Request

_SHORT, _LONG = 2, 6
"""Steps of the pictures that are timed."""


@dataclass(frozen=True)
class StepTimes:
    """What pictures of one subject take on this machine, one at a time, in milliseconds.

    Attributes:
        deep_ms: Of a step of one row, and of each row more.
        shallow_ms: The same of a step without the deep blocks; None where there is none.
        rest_ms: Of a picture beside its steps: text, decoder, host.
    """

    deep_ms: tuple[float, float]
    shallow_ms: tuple[float, float] | None
    rest_ms: float

    def picture_ms(self, plan: Plan) -> float:
        """What a picture of a known subject takes."""
        total = self.rest_ms
        for rows, is_deep in rows_of_steps(plan):
            times = self.deep_ms if is_deep or self.shallow_ms is None else self.shallow_ms
            total += times[0] + (rows - 1) * times[1]
        return total


def tune(
    curve: Curve,
    spec: PairSpec,
    engine: Engine,
    request: Request,
    *,
    target_ms: float | None,
    min_fidelity: float | None,
    students: bool,
) -> TunedSettings:
    """Choose from a curve for this machine; see `Pipeline.tune`.

    Args:
        curve: Of the pair.
        spec: Of the pair.
        engine: Draws the pictures that are timed.
        request: Of them, but for their settings.
        target_ms: The most that a picture may take.
        min_fidelity: The least that it must keep.
        students: Few-step pairs of the curve may be chosen.

    Raises:
        ParameterError: The curve is of another pair, or nothing on it will do.
    """
    if curve.fingerprint != spec.fingerprint:
        raise ParameterError(
            f"the curve is of pair {curve.pair} {curve.fingerprint[:12]}, this is "
            f"{spec.config.name} {spec.fingerprint[:12]}; measure one with bootpig-rt tune "
            "--measure"
        )

    def draw(**settings: Any) -> float:
        start = time.perf_counter()
        engine.draw([replace(request, **settings)])
        return 1e3 * (time.perf_counter() - start)

    times = measure_times(draw, has_shallow=spec.keeps_features)
    planned = []
    for point in curve.points:
        settings = settings_of(point)
        if point.fingerprint != spec.fingerprint and not students:
            continue
        if settings.approximation == "none" or spec.keeps_features:
            plan = engine.planner.plan(replace(request, **settings), is_asked_for=False)
            planned.append((point, times.picture_ms(plan)))
    return choose(curve, planned, target_ms=target_ms, min_fidelity=min_fidelity)


def rows_of_steps(plan: Plan) -> list[tuple[int, bool]]:
    """Rows of each step of a picture alone, and whether it computes the deep blocks."""
    found = []
    deep = np.ones(len(plan.entries), np.bool_) if plan.deep_steps is None else plan.deep_steps
    for scales, entry, is_deep in zip(plan.scales, plan.entries, deep, strict=True):
        references = (0,) if entry >= 0 else ()
        branches = PictureBranches(0, 1, references, float(scales[0]), float(scales[1]))
        found.append((len(plan_guidance([branches]).picture_of_row), bool(is_deep)))
    return found


def measure_times(draw: Callable[..., float], *, has_shallow: bool) -> StepTimes:
    """Time a few short pictures.

    Args:
        draw: Draws a picture of a known subject with some settings, and returns its time in ms.
        has_shallow: Steps may leave out the deep blocks.
    """
    three = {"image_guidance_scale": 3.0, "text_guidance_scale": 2.0}
    one = {"image_guidance_scale": 1.0, "text_guidance_scale": 1.0}

    def best(steps: int, scales: dict[str, float], approximation: str = "none") -> float:
        manner = {"num_inference_steps": steps, "approximation": approximation, **scales}
        draw(**manner)  # what a shape needs once is not part of it
        return min(draw(**manner) for _ in range(2))

    short, long = best(_SHORT, three), best(_LONG, three)
    step = max(0.0, (long - short) / (_LONG - _SHORT))
    rest = max(0.0, long - _LONG * step)
    row = (step - max(0.0, best(_LONG, one) - rest) / _LONG) / 2
    deep = _line(step, row)
    if not has_shallow:
        return StepTimes(deep, None, rest)
    every = f"cache:{_LONG - 1}"  # the first step and the last are deep
    shallow = []
    for scales, rows in ((three, 3), (one, 1)):
        of_deep = 2 * (deep[0] + (rows - 1) * deep[1])
        shallow.append(max(0.0, best(_LONG, scales, every) - rest - of_deep) / (_LONG - 2))
    return StepTimes(deep, _line(shallow[0], (shallow[0] - shallow[1]) / 2), rest)


def _line(of_three: float, of_row: float) -> tuple[float, float]:
    """Time of one row and of each more, from that of three; neither is negative."""
    row = min(max(0.0, of_row), of_three / 3)
    return of_three - 2 * row, row


@dataclass(frozen=True, kw_only=True)
class TunedSettings(PictureSettings):
    """Settings that were chosen from a curve: `pipe(prompt, **settings)`.

    Attributes:
        point: What the curve measured of them.
        expected_ms: A picture of a known subject on this machine, one at a time.
        full_ms: The same with the full setting.
        num_pictures: That the curve was judged by.
        is_student: Another pair draws it: load that of `point.model`.
    """

    point: CurvePoint
    expected_ms: float
    full_ms: float
    num_pictures: int
    is_student: bool = False

    def keys(self) -> list[str]:
        """Names of what is set, without what was measured."""
        names = {field.name for field in fields(PictureSettings)}
        return [name for name in super().keys() if name in names]

    def describe(self) -> str:
        """What is set, what it takes here, and what it costs, in a few lines."""
        point, changes = self.point, self.point.changes
        given = ", ".join(f"{name}={self[name]!r}" for name in self.keys()) or "the pair's own"
        lines = [
            f"{point.name}: {point.label}",
            f"settings   {given}",
            f"time       {self.expected_ms:.0f} ms a picture of a known subject on this machine; "
            f"the full setting {self.full_ms:.0f} ms",
            f"work       {point.work:.2f} of the full setting's multiplications, "
            f"{point.time.value:.2f} ({point.time.low:.2f} to {point.time.high:.2f}) of its time "
            "where the curve was measured",
            f"fidelity   {point.fidelity:.3f}; 1 as the full setting, 0 as without a subject",
        ]
        if changes:
            told = (
                f"{name} {change.value:+.3g} ({change.low:+.3g} to {change.high:+.3g})"
                for name, change in changes.items()
            )
            lines.append(f"judges     {', '.join(told)}, by {self.num_pictures} pictures")
        if self.is_student:
            lines.append(f"pair       {point.model}, another pair: draw it with Pipeline(FOLDER)")
        return "\n".join(lines)


def choose(
    curve: Curve,
    planned: Sequence[tuple[CurvePoint, float]],
    *,
    target_ms: float | None,
    min_fidelity: float | None,
) -> TunedSettings:
    """The most faithful settings within a time, or the quickest that are faithful enough.

    Args:
        curve: Of the pair.
        planned: Points that may be chosen, and the time of a picture with each, in ms.
        target_ms: The most that a picture may take.
        min_fidelity: The least that the pictures must keep, see `CurvePoint.fidelity`.

    Raises:
        ParameterError: Nothing is quick and faithful enough; says what would be.
    """
    times = {point.name: ms for point, ms in planned}
    fit = [
        (point, ms)
        for point, ms in planned
        if (target_ms is None or ms <= target_ms)
        and (min_fidelity is None or point.fidelity >= min_fidelity)
    ]
    if not fit:
        raise ParameterError(_why_not(planned, target_ms, min_fidelity))
    by_time = min_fidelity is not None
    point, ms = min(
        fit, key=lambda one: (one[1], -one[0].fidelity) if by_time else (-one[0].fidelity, one[1])
    )
    settings: dict[str, Any] = {name: point.settings[name] for name in point.settings}
    return TunedSettings(
        **settings,
        point=point,
        expected_ms=ms,
        full_ms=times.get(curve.full, float("nan")),
        num_pictures=curve.num_pictures,
        is_student=point.fingerprint != curve.fingerprint,
    )


def _why_not(
    planned: Sequence[tuple[CurvePoint, float]],
    target_ms: float | None,
    min_fidelity: float | None,
) -> str:
    wanted = []
    if target_ms is not None:
        quickest, ms = min(planned, key=lambda one: one[1])
        wanted.append(
            f"target_ms is {target_ms:g}, but the quickest, {quickest.name}, takes {ms:.0f} ms a "
            "picture on this machine"
        )
    if min_fidelity is not None:
        best = max((point for point, _ in planned), key=lambda point: point.fidelity)
        wanted.append(
            f"min_fidelity is {min_fidelity:g}, and the most faithful is {best.name} with "
            f"{best.fidelity:.3f}"
        )
    both = "no settings of the curve do both: " if len(wanted) == 2 else ""
    return f"{both}{'; '.join(wanted)}; ask for less, or measure more settings"


def check_wishes(target_ms: object, min_fidelity: object) -> None:
    """Refuse a tuning that asks for nothing, or for what cannot be.

    Raises:
        ParameterError: Says what is expected.
    """
    if target_ms is None and min_fidelity is None:
        raise ParameterError(
            "nothing to tune for, expected target_ms, the most that a picture may take, or "
            "min_fidelity, the least that it must keep, 0 to 1"
        )
    for name, value, most in (("target_ms", target_ms, 1e9), ("min_fidelity", min_fidelity, 1.0)):
        is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < float(value) <= most):  # type: ignore[arg-type]
            raise ParameterError(
                f"{name} is {shown(value)}, expected a number above 0, at most {most:g}"
            )
