"""Plots as SVG text: bars, points with a Pareto front, lines. No dependencies, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 720
_BAR, _GAP, _LABEL = 22, 8, 270
_COLOURS = ("#2f6f8f", "#c0632b", "#5a8f3c", "#8b5aa8", "#a8893a", "#4a4a4a")


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, and the text at its end."""

    label: str
    value: float
    text: str
    is_floor: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def bars(title: str, items: Sequence[Bar]) -> str:
    """Horizontal bars from zero, in the order given; floors are drawn pale."""
    largest = max((item.value for item in items), default=1.0) or 1.0
    room = WIDTH - _LABEL - 90
    height = len(items) * (_BAR + _GAP) + 8
    parts = []
    for number, item in enumerate(items):
        y = 4 + number * (_BAR + _GAP)
        length = max(1.0, room * item.value / largest)
        style = "floor" if item.is_floor else "bar"
        middle = y + _BAR * 0.7
        label = escape(_short(item.label))
        parts += [
            f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{label}</text>',
            f'<rect class="{style}" x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR}"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{middle}">{escape(item.text)}</text>',
        ]
    return _svg(title, height, parts)


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both: less x and more y, by rising x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def scatter(title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Points with intervals; those of the Pareto front are filled, joined and named."""
    height = 380
    front = pareto_front(points)
    x_of, y_of, parts = _axes(
        [point.x for point in points],
        [value for p in points for value in (p.y, p.low, p.high) if value is not None],
        height,
        x_label,
        y_label,
    )
    path = " ".join(f"{x_of(point.x):.1f},{y_of(point.y):.1f}" for point in front)
    parts.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = x_of(point.x), y_of(point.y)
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(point.low):.1f}" '
                f'y2="{y_of(point.high):.1f}"/>'
            )
        style = "dot" if point in front else "ring"
        parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        place = y + 4
        while any(abs(place - other) < 13 and abs(x - left) < 130 for left, other in taken):
            place += 13
        taken.append((x, place))
        anchor, shift = ("end", -9) if x > WIDTH - 160 else ("start", 9)
        parts.append(
            f'<text class="small" x="{x + shift:.1f}" y="{place:.1f}" text-anchor="{anchor}">'
            f"{escape(point.label)}</text>"
        )
    return _svg(title, height, parts)


def lines(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str
) -> str:
    """One line a series over x, from zero."""
    height = 320
    xs = [x for each in series.values() for x, _ in each]
    ys = [y for each in series.values() for _, y in each]
    x_of, y_of, parts = _axes(xs, [0.0, *ys], height, x_label, y_label)
    for number, (name, found) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in sorted(found))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts += [
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>'
            for x, y in found
        ]
        parts.append(
            f'<text class="small" x="70" y="{20 + 15 * number}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    return _svg(title, height, parts)


def _axes(xs: Sequence[float], ys: Sequence[float], height: int, x_label: str, y_label: str):  # type: ignore[no-untyped-def]
    left, right, top, bottom = 60, WIDTH - 20, 16, height - 46
    x_low, x_high = _range(xs)
    y_low, y_high = _range(ys)

    def x_of(x: float) -> float:
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def y_of(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    parts = []
    for value in _ticks(y_low, y_high):
        y = f"{y_of(value):.1f}"
        parts += [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>',
            f'<text class="small" x="{left - 6}" y="{y}" text-anchor="end">{value:g}</text>',
        ]
    for value in _ticks(x_low, x_high):
        place = f'x="{x_of(value):.1f}" y="{bottom + 18}"'
        parts.append(f'<text class="small" {place} text-anchor="middle">{value:g}</text>')
    place = f'x="{(left + right) / 2}" y="{height - 6}"'
    parts.append(f'<text {place} text-anchor="middle">{escape(x_label)}</text>')
    middle = (top + bottom) / 2
    turned = f'x="14" y="{middle}" transform="rotate(-90 14 {middle})"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(y_label)}</text>')
    return x_of, y_of, parts


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    return (0.0 if low == 0 else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    unit = 10 ** np.floor(np.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw)
    first = np.ceil(low / step)
    return [float(round(step * (first + n), 10)) for n in range(12) if step * (first + n) <= high]


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">\n<title>{escape(title)}</title>\n'
        f"<style>{SVG_STYLE}</style>\n{body}\n</svg>"
    )


SVG_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.small{font-size:11px}"
    ".bar{fill:#2f6f8f}.floor{fill:#b9c7cf}.grid{stroke:#e3e3e3}.front{fill:none;stroke:#c0632b;"
    "stroke-width:1.5;stroke-dasharray:5 4}.dot{fill:#c0632b}.ring{fill:#fff;stroke:#2f6f8f;"
    "stroke-width:2}.error{stroke:#9aa}"
)
