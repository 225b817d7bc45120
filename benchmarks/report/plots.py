"""Plots as SVG text: bars, a waterfall, points with a Pareto front, curves. No dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bootpig_rt.benchmarks.report.svg import (
    NARROW,
    WIDE,
    Box,
    Scale,
    axes,
    frame,
    line,
    rect,
    text,
    text_width,
)

_BAR, _GAP, _NAME = 20.0, 12.0, 16.0


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Its name.
        value: Its length, zero and up.
        text: What stands at its end.
        is_other: Somebody else's, or no step of the story: drawn pale.
    """

    label: str
    value: float
    text: str
    is_other: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot.

    Attributes:
        label: Its name.
        x: Less is better.
        y: More is better.
        low: Lower end of the interval of y; None where it has none.
        high: Upper end.
    """

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def bars(title: str, items: Sequence[Bar], *, width: int = WIDE) -> str:
    """Horizontal bars from zero, names above them."""
    return waterfall(title, items, (), width=width)


def waterfall(
    title: str, items: Sequence[Bar], floors: Sequence[Bar] = (), *, width: int = WIDE
) -> str:
    """Bars from zero; between a bar and the one before it, what was saved; floors as lines.

    Args:
        title: For a screen reader.
        items: From top to bottom. Savings are drawn where there are floors to fall to.
        floors: Drawn as lines over all bars, named below them.
        width: Of the drawing.
    """
    largest = max([each.value for each in (*items, *floors)], default=0.0) or 1.0
    room = width - 8 - max([text_width(each.text, 12.5) for each in items], default=0.0) - 10
    row = _NAME + _BAR + _GAP
    end = len(items) * row
    marks = sorted(2 + room * floor.value / largest for floor in floors)
    shapes, words = [], []
    before: float | None = None
    for number, each in enumerate(items):
        top = number * row
        length = stop = room * each.value / largest
        words.append(text(2, top + 11, each.label))
        shapes.append(rect(2, top + _NAME, length, _BAR, "other" if each.is_other else "bar"))
        if floors and before is not None and before > each.value:
            stop = room * before / largest
            shapes.append(rect(2 + length, top + _NAME, stop - length, _BAR, "saved"))
        # A floor crosses the bars alone, no names and no numbers: its line is cut.
        at, long = 2 + stop + 7, text_width(each.text, 12.5)
        for mark in marks:
            if at - 4 < mark < at + long + 4:
                at = mark + 7
            shapes.append(line(mark, top + _NAME, mark, top + _NAME + _BAR + 3, "floor"))
        words.append(text(at, top + _NAME + 15, each.text, style="strong"))
        before = each.value
    y = end
    for each in sorted(floors, key=lambda floor: -floor.value):
        x = 2 + room * each.value / largest
        shapes.append(line(x, end - _GAP + 2, x, y + 3, "floor"))
        for part in _wrapped(f"{each.label}, {each.text}", width - 8):
            y += 15
            # Moved to the left where it would leave the drawing.
            left = max(2.0, min(x, width - 4 - text_width(part)))
            words.append(text(left, y, part, style="floor-name"))
    return frame(title, width, y + 6, [*shapes, *words])


def _wrapped(words: str, width: float) -> list[str]:
    """Words in lines that are no wider."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both: less x and more y, by rising x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def scatter(
    title: str, points: Sequence[Point], *, x_label: str, y_label: str, width: int = WIDE
) -> str:
    """Points with intervals; those of the Pareto front are filled, joined and named.

    The others are named where a pointer rests on them, and in the table.
    """
    height = 380 if width == WIDE else 330
    front = pareto_front(points)
    x_of, y_of, parts = axes(
        [point.x for point in points],
        [value for p in points for value in (p.y, p.low, p.high) if value is not None],
        width=width,
        height=height,
        x_label=x_label,
        y_label=y_label,
        is_share=True,
    )
    path = " ".join(f"{x_of(point.x):.1f},{y_of(point.y):.1f}" for point in front)
    parts.append(f'<polyline class="front" points="{path}"/>')
    for point in points:
        x = x_of(point.x)
        if point.low is not None and point.high is not None:
            parts.append(line(x, y_of(point.low), x, y_of(point.high), "error"))
    # The front comes last: rings of others must not hide it.
    for point in sorted(points, key=lambda each: each in front):
        style = "dot" if point in front else "ring"
        name = f"{point.label}: {point.x:.4g}, {point.y:.1%}"
        parts.append(
            f'<circle class="{style}" cx="{x_of(point.x):.1f}" cy="{y_of(point.y):.1f}" r="5">'
            f"<title>{escape(name)}</title></circle>"
        )
    parts += _names(front, points, x_of, y_of, width)
    return frame(title, width, height, parts)


def _names(
    named: Sequence[Point], points: Sequence[Point], x_of: Scale, y_of: Scale, width: int
) -> list[str]:
    """Labels of points, each at the first place beside it that is free; none where none is."""
    taken = [Box(x_of(p.x) - 6, y_of(p.y) - 6, x_of(p.x) + 6, y_of(p.y) + 6) for p in points]
    parts = []
    for point in named:
        x, y, long = x_of(point.x), y_of(point.y), text_width(point.label)
        right, left = x + 9, x - 9 - long
        # The front rises: to its lower right and upper left its own line is never in the way.
        for at, dy in ((right, 15), (left, -7), (right, 28), (left, -20), (right, 4), (left, 4)):
            box = Box(at, y + dy - 10, at + long, y + dy + 2)
            inside = at > 40 and at + long < width and box.top > 18
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                parts.append(text(at, y + dy, point.label, style="small"))
                break
    return parts


def curve(title: str, points: Sequence[tuple[float, float]], *, x_label: str, y_label: str) -> str:
    """One curve over x, y from zero."""
    return curves(title, {"": points}, x_label=x_label, y_label=y_label)


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
) -> str:
    """Curves over x, y from zero; the second and later ones are pale. Each is named at its end."""
    height = 240
    every = [point for points in series.values() for point in points]
    x_of, y_of, parts = axes(
        [0.0, *(x for x, _ in every)],
        [0.0, *(y for _, y in every)],
        width=NARROW,
        height=height,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[x for x, _ in every],
    )
    names = []
    for number, (name, points) in enumerate(series.items()):
        ordered = sorted(points)
        look = " pale" if number else ""
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in ordered)
        parts.append(f'<polyline class="curve{look}" points="{path}"/>')
        for x, y in ordered:
            said = f"{name}, {x:g}: {y:.4g}" if name else f"{x:g}: {y:.4g}"
            parts.append(
                f'<circle class="mark{look}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4">'
                f"<title>{escape(said)}</title></circle>"
            )
        if name and ordered:
            x, y = ordered[-1]
            names.append(text(x_of(x) - 8, y_of(y) - 6, name, anchor="end", style="small"))
    return frame(title, NARROW, height, [*parts, *names])


def interval(value: float, low: float, high: float, largest: float) -> str:
    """A value with its interval as a small bar of a table; the number stands beside it."""
    width, height = 72, 14
    scale = width / max(largest, 1e-9)
    ends = f"{max(0.0, low) * scale:.1f}", f"{min(high, largest) * scale:.1f}"
    return (
        f'<svg class="interval" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'aria-hidden="true">'
        f'<rect class="track" width="{width}" height="6" y="4" rx="2"/>'
        f'<rect class="value" width="{min(value, largest) * scale:.1f}" height="6" y="4" rx="2"/>'
        f'<path class="whisker" d="M{ends[0]} 7H{ends[1]}M{ends[0]} 2V12M{ends[1]} 2V12"/></svg>'
    )
