"""Which plots a suite's rows become."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bootpig_rt.benchmarks.report import plots
from bootpig_rt.benchmarks.report.plots import Bar, Point
from bootpig_rt.benchmarks.report.svg import NARROW, WIDE
from bootpig_rt.benchmarks.result import Row, SuiteResult

_CHAINS = {
    "a known subject": ("published", "torch_warm", "ours_warm", "ours_warm_4_images"),
    "a new subject": ("published", "torch_cold", "ours_cold"),
}
"""Ways of one kind of picture, each of which saves something over the one before it."""

_FLOORS = ("bare_unet", "arithmetic")
_OPERATORS = 10


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: Of its file, without an ending.
        caption: What is seen.
        wide: As SVG for a desk.
        narrow: As SVG for a phone; equal to `wide` where one is right for both.
    """

    name: str
    caption: str
    wide: str
    narrow: str


def figures(theme: str, results: Sequence[SuiteResult]) -> list[Figure]:
    """The plots of a section; none for suites that are tables only."""
    rows = [row for result in results for row in result.rows]
    ways: dict[str, Callable[[Sequence[Row]], Iterator[Figure]]] = {
        "picture": _ablation, "quality": _quality, "growth": _growth, "profile": _profile,
        "latency": partial(_latency, base=_base_of(results)),
    }  # fmt: skip
    found = list(ways[theme](rows)) if theme in ways and rows else []
    names = [each.name for each in found]
    # Two groups may differ only in signs that a file name leaves out.
    return [
        each if names.index(each.name) == number else replace(each, name=f"{each.name}-{number}")
        for number, each in enumerate(found)
    ]


def file_name(words: str) -> str:
    """The words as part of a file name, on any system: small letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "plot"


def _ablation(rows: Sequence[Row]) -> Iterator[Figure]:
    found = {row.name: row for row in rows if row.median_ms is not None}
    floors = [
        Bar(row.label.removeprefix("floor: "), ms, f"{ms:,.0f} ms")
        for row in (found[name] for name in _FLOORS if name in found)
        if (ms := row.median_ms) is not None
    ]
    for what, chain in _CHAINS.items():
        steps = [_bar(found[name]) for name in chain if name in found]
        if len(steps) < 2:
            continue
        caption = (
            f"Time of a picture of {what}, from top to bottom; pale is what was saved; dashed are "
            "floors"
        )
        wide, narrow = (plots.waterfall(caption, steps, floors, width=w) for w in (WIDE, NARROW))
        yield Figure(f"time-of-{file_name(what)}", caption, wide, narrow)


def _bar(row: Row) -> Bar:
    time_ms = row.median_ms or 0.0
    has_ratio = row.ratio is not None and row.name != row.ratio_to
    ratio = f", {row.ratio.value:.2f}x" if row.ratio is not None and has_ratio else ""
    return Bar(row.label, time_ms, f"{time_ms:,.0f} ms{ratio}", row.name.startswith("torch"))


def _quality(rows: Sequence[Row]) -> Iterator[Figure]:
    judged = [row for row in rows if row.values.get("identity") is not None]
    # Rows of two suites ran in different rounds: only their ratios are comparable.
    speedups = {row.name: _speedup(row) for row in judged if row.median_ms or _speedup(row)}
    is_ratio = all(speedups.values())
    x_label = "time of a picture, published way = 1" if is_ratio else "ms a picture"
    for what in ("identity", "scene"):
        points = []
        for row in judged:
            speedup = speedups.get(row.name)
            x = (1 / speedup if speedup else None) if is_ratio else row.median_ms
            y = row.values.get(what)
            if x is not None and y is not None:
                ends = (row.values.get(f"{what}_low"), row.values.get(f"{what}_high"))
                points.append(Point(row.label, x, y, *ends))
        if not points:
            continue
        caption = f"{what.capitalize()} against time; joined and filled: nothing is better in both"
        wide, narrow = (
            plots.scatter(caption, points, x_label=x_label, y_label=what, width=width)
            for width in (WIDE, NARROW)
        )
        yield Figure(f"{what}-against-time", caption, wide, narrow)


def _speedup(row: Row) -> float | None:
    return row.values.get("speedup") or (row.ratio.value if row.ratio is not None else None)


def _growth(rows: Sequence[Row]) -> Iterator[Figure]:
    """Time, then memory, over each thing that was varied."""
    powers = {row.name: row.values.get("exponent") for row in rows}
    for what, unit, value_of, start, exponents in (
        ("Time", "ms", lambda row: row.median_ms, "over ", "exponent "),
        ("Memory", "MiB", _peak_mib, "memory over ", "memory exponent "),
    ):
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            x, y = row.values.get("x"), value_of(row)
            if x is not None and y is not None and row.group.startswith(start):
                groups.setdefault(row.group.removeprefix(start), []).append((x, y))
        for varied, points in groups.items():
            power = powers.get(f"{exponents}{varied}")
            caption = f"{what} over {varied}" + ("" if power is None else f", power {power:.2f}")
            svg = plots.curve(caption, points, x_label=varied, y_label=unit)
            yield Figure(f"{what.lower()}-over-{file_name(varied)}", caption, svg, svg)


def _peak_mib(row: Row) -> float | None:
    peak = row.values.get("peak_bytes")
    return None if peak is None else peak / 2**20


_VARIED = re.compile(r"(\S+) (batch|steps|references|size) (\d+)$")


def _base_of(results: Sequence[SuiteResult]) -> dict[str, float]:
    """What a picture is drawn with where it is not varied."""
    found = {"batch": 1.0, "references": 1.0}
    for result in results:
        for name, setting in (("steps", "steps"), ("size", "size_px")):
            value = result.settings.get(setting)
            if isinstance(value, int):
                found[name] = float(value)
    return found


def _latency(rows: Sequence[Row], base: Mapping[str, float]) -> Iterator[Figure]:
    """A warm picture over each thing that was varied, a curve for each backend."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    plain = {row.name: row.median_ms for row in rows if row.name.endswith(" picture")}
    for row in rows:
        match = _VARIED.match(row.name)
        if match is not None and row.median_ms is not None:
            backend, varied, x = match.groups()
            points = found.setdefault(varied, {}).setdefault(backend, [])
            points.append((float(x), row.median_ms))
    for varied, series in found.items():
        for backend, points in series.items():
            at, time_ms = base.get(varied), plain.get(f"{backend} picture")
            if at is not None and time_ms is not None and at not in dict(points):
                points.append((at, time_ms))
    for varied, series in found.items():
        caption = f"Time of a known subject's picture over {varied}"
        svg = plots.curves(caption, series, x_label=varied, y_label="ms a picture")
        yield Figure(f"latency-over-{varied}", caption, svg, svg)


def _profile(rows: Sequence[Row]) -> Iterator[Figure]:
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group and row.values.get("share") is not None]
        items = [Bar(r.label, s := r.values["share"] or 0.0, f"{s:.1%}") for r in chosen]
        items = [replace(each, is_other=n >= 5) for n, each in enumerate(items[:_OPERATORS])]
        if items:
            caption = f"Where the time goes: {group}; dark are the five largest"
            svg = plots.bars(caption, items, width=NARROW)
            yield Figure(f"profile-{file_name(group)}", caption, svg, svg)
