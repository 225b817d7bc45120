"""Which parts of a quantised graph stay wide: those that hurt most, until limits are met.

Rounding errors of parts are nearly independent, so squares of errors nearly add up. If all parts
rounded are too far off, the launch that is furthest off tells which parts hurt: in it groups of
neighbours are measured alone, and those that hurt are halved, down to single parts. Then parts
become wide, worst first, until what is measured of all the others together is within the limit of
one step; should another launch be the furthest off by then, it tells too. If whole pictures end too
far away, all of it is done with a tighter limit once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bootpig_rt.export.calibration import Arrays, DrawnPicture
from bootpig_rt.export.quantise_graph import Sample
from bootpig_rt.export.quantise_parts import Part

_TIGHTER = 0.7
_MOST_ROUNDS = 6
_FIRST_GROUPS = 16
_LEFT_TOGETHER = 0.5
"""Groups are not told apart any more once their errors together are this share of a limit."""


class SwitchedGraph(Protocol):
    """What a choice is measured with; see `quantise_parts.Switched`."""

    parts: tuple[Part, ...]

    def launch(self, sample: Sample, wide: Collection[str]) -> Arrays:
        """Outputs by name, with some parts wide."""


@dataclass(frozen=True)
class WideChoice:
    """What was chosen for a graph, and what it costs.

    Attributes:
        wide: Names of the parts that are not rounded, worst first.
        parts: How many parts there are.
        rounded_share: Share of the weights that are rounded.
        error_of_all: Relative error of a launch if all parts were rounded.
        error: As chosen.
        end_error: Relative error of latents after all steps, as chosen; None for graphs that are
            no steps.
        alone: Error of a launch with each part rounded alone, where that had to be known; of parts
            that hurt little, their share of what a group of them does.
    """

    wide: tuple[str, ...]
    parts: int
    rounded_share: float
    error_of_all: float
    error: float
    end_error: float | None
    alone: dict[str, float] = field(default_factory=dict)

    def describe(self, graph: str) -> str:
        """One line for a report."""
        text = (
            f"{graph}: {self.parts - len(self.wide)} of {self.parts} parts in int8 with "
            f"{self.rounded_share:.0%} of the weights, error of a launch {self.error:.1e}"
        )
        if self.wide:
            text += f" ({self.error_of_all:.1e} with all), wide: {', '.join(self.wide)}"
        return text


def choose_wide(
    graph: SwitchedGraph,
    samples: Sequence[Sample],
    *,
    true: Sequence[Arrays],
    limit: float,
    pictures: Sequence[DrawnPicture] = (),
    end_limit: float = float("inf"),
    known: Mapping[str, float] | None = None,
    told: Callable[[float], object] | None = None,
) -> WideChoice:
    """Choose by measurement.

    Args:
        graph: With switches.
        samples: To measure a launch on.
        true: What the float32 graph makes of them.
        limit: Most relative error of a launch.
        pictures: Whole runs to replay, of a step graph.
        end_limit: Most relative error of latents after all steps.
        known: Errors of parts alone, from another graph of the same layers; they only order.
        told: Share of the work done, 0..1; what it raises ends the work.
    """
    names = [part.name for part in graph.parts]
    tell = told or (lambda _: None)

    def error_of(number: int, wide: Collection[str]) -> float:
        return max_relative([true[number]], [graph.launch(samples[number], wide)])

    def furthest(wide: Collection[str]) -> tuple[float, int]:
        """Error of the launch that is furthest off, and its number."""
        return max((error_of(number, wide), number) for number in range(len(samples)))

    def errors_in(number: int) -> dict[str, float]:
        """Of the parts alone; each launch that is asked takes half of the progress that is left."""
        left = 0.5 ** (len(asked) - 1)
        return _errors_alone(
            names,
            lambda group: error_of(number, set(names) - set(group)),
            limit=limit,
            told=lambda share: tell(1 - left + left / 2 * share),
        )

    alone = {name: known[name] for name in names if name in known} if known else {}
    asked: set[int] = set() if len(alone) < len(names) else set(range(len(samples)))
    worst_first = sorted(names, key=lambda name: -alone.get(name, 0.0))
    wide: list[str] = []
    of_all, worst = furthest(wide)
    error, end_error = of_all, None
    for _ in range(_MOST_ROUNDS):
        while error > limit and len(wide) < len(names):
            if worst not in asked:  # it tells which parts hurt it
                asked.add(worst)
                hurts = errors_in(worst)
                alone = {name: max(alone.get(name, 0.0), hurts[name]) for name in names}
                worst_first = sorted(names, key=lambda name: -alone[name])
                wide, error = [], of_all
            wide = worst_first[: _next_count(worst_first, alone, len(wide), error, limit)]
            error, worst = furthest(wide)
        if not pictures:
            break
        end_error = max(_end_error(graph, picture, wide, names) for picture in pictures)
        if end_error <= end_limit or len(wide) == len(names):
            break
        limit = min(limit, error) * _TIGHTER
    tell(1.0)
    total = sum(part.weights for part in graph.parts) or 1
    kept = sum(part.weights for part in graph.parts if part.name in wide)
    return WideChoice(tuple(wide), len(names), 1 - kept / total, of_all, error, end_error, alone)


def _errors_alone(
    names: Sequence[str],
    error_of: Callable[[Sequence[str]], float],
    *,
    limit: float,
    told: Callable[[float], object],
) -> dict[str, float]:
    """Errors of parts rounded alone, from groups of neighbours that are halved where they hurt.

    Args:
        names: Of the parts, neighbours beside each other.
        error_of: Error of a launch with a group rounded and all else wide.
        limit: Of a launch.
        told: Share of the measurements that are done, of all that could be needed.
    """
    size = -(-len(names) // _FIRST_GROUPS)
    fresh = [names[start : start + size] for start in range(0, len(names), size)]
    singles: dict[str, float] = {}
    groups: list[tuple[float, Sequence[str]]] = []
    done = 0
    while fresh:
        for group in fresh:
            error = error_of(group)
            if len(group) == 1:
                singles[group[0]] = error
            else:
                groups.append((error, group))
            done += 1
            told(done / (2 * len(names)))
        groups.sort(key=lambda each: each[0])
        fresh = []
        if sum(error**2 for error, _ in groups) > (_LEFT_TOGETHER * limit) ** 2:
            _, worst = groups.pop()
            middle = len(worst) // 2
            fresh = [worst[:middle], worst[middle:]]
    shares = {name: error / len(group) ** 0.5 for error, group in groups for name in group}
    return singles | shares


def _next_count(
    worst_first: Sequence[str], alone: dict[str, float], count: int, error: float, limit: float
) -> int:
    """How many parts to make wide next: as many as the sum of squares says, at least one more."""
    squares = np.array([alone[name] ** 2 for name in worst_first])
    rest = squares[count:].sum()
    scale = error**2 / rest if rest else 1.0  # what was measured of them, over what was predicted
    for more in range(count + 1, len(worst_first)):
        if squares[more:].sum() * scale <= limit**2:
            return more
    return len(worst_first)


def max_relative(true: Sequence[Arrays], made: Sequence[Arrays]) -> float:
    """The worst relative error of any output; NaN is infinite."""
    worst = 0.0
    for wanted, got in zip(true, made, strict=True):
        for name, array in wanted.items():
            norm = float(np.linalg.norm(array)) or 1.0
            error = float(np.linalg.norm(got[name].astype(np.float64) - array)) / norm
            worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def _end_error(
    graph: SwitchedGraph, picture: DrawnPicture, wide: Collection[str], names: Sequence[str]
) -> float:
    """Relative error of a picture's latents when it is drawn with some parts wide."""
    if len(wide) == len(names):
        return 0.0
    state: Any = picture.states[0]
    for step in range(len(picture.states) - 1):
        sample = {**picture.inputs, "step": np.array([step], np.int64), "state": state}
        state = graph.launch(sample, wide)["next_state"]
    wanted = picture.states[-1][0]
    error = float(np.linalg.norm(state[0] - wanted)) / (float(np.linalg.norm(wanted)) or 1.0)
    return error if np.isfinite(error) else float("inf")
