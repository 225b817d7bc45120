"""What all plots share: the frame of an SVG, axes with ticks, and boxes that text takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDE = 720
NARROW = 360

Scale = Callable[[float], float]

# On the page the variables come from its style sheet, light or dark; a file of its own has none
# and takes the colours named here.
STYLE = (
    ".plot text{font:12.5px system-ui,sans-serif;fill:var(--ink,#26303a);"
    "paint-order:stroke;stroke:var(--paper,#fff);stroke-width:2px;stroke-linejoin:round}"
    ".plot .small{font-size:11px;fill:var(--faint,#5d6875)}"
    ".plot .strong{font-weight:600}"
    ".plot .bar{fill:var(--accent,#2f6f8f)}.plot .other{fill:var(--other,#93a5b1)}"
    ".plot .saved{fill:var(--accent,#2f6f8f);opacity:.16}"
    ".plot .grid{stroke:var(--line,#e2e6ea)}"
    ".plot .floor{stroke:var(--warm,#b8572a);stroke-width:1.5;stroke-dasharray:4 4}"
    ".plot .floor-name{fill:var(--warm,#b8572a);font-size:11px}"
    ".plot .front,.plot .curve{fill:none;stroke-width:2;stroke:var(--accent,#2f6f8f)}"
    ".plot .front{stroke:var(--warm,#b8572a);stroke-width:1.5;stroke-dasharray:5 4}"
    ".plot .dot{fill:var(--warm,#b8572a)}.plot .mark{fill:var(--accent,#2f6f8f)}"
    ".plot .ring{fill:var(--paper,#fff);stroke:var(--accent,#2f6f8f);stroke-width:2}"
    ".plot .curve.pale{stroke:var(--other,#93a5b1)}.plot .mark.pale{fill:var(--other,#93a5b1)}"
    ".plot .error{stroke:var(--accent,#2f6f8f);opacity:.4}"
)


def frame(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    """An SVG to be put into a page; `title` is what a screen reader says."""
    body = "\n".join(parts)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">\n{body}\n</svg>'
    )


def as_file(svg: str) -> str:
    """The same as a file of its own: colours, a white ground."""
    head, end, rest = svg.partition(">")
    return f"{head}{end}\n<style>svg{{background:#fff}}{STYLE}</style>{rest}\n"


def text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    """Words that stand on `y`."""
    look = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def rect(x: float, y: float, width: float, height: float, style: str) -> str:
    """A box with slightly round corners."""
    return (
        f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width):.1f}" '
        f'height="{height:.1f}" rx="2"/>'
    )


@dataclass(frozen=True)
class Box:
    """Where a label stands, to keep labels apart."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Do the two share a point?"""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def text_width(words: str, font_px: float = 11) -> float:
    """About how wide words are: no font is at hand here."""
    return 0.56 * font_px * len(words)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * index, 10) for index in range(first, last + 1)]


def axes(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    width: int,
    height: int,
    x_label: str,
    y_label: str,
    is_share: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> tuple[Scale, Scale, list[str]]:
    """Grid, ticks and names of two axes, around finite values.

    Args:
        xs: All values that must fit, from left to right.
        ys: From bottom to top.
        width: Of the plot, in its own pixels.
        height: Likewise.
        x_label: Under the axis.
        y_label: Above the axis, where it can be read without turning the head.
        is_share: Ticks of y are percentages.
        x_ticks: Named on the x axis, the larger where two are too near; None: round numbers.

    Returns:
        Places of x, places of y, and what to draw first.
    """
    left, right, top, bottom = 46.0, width - 14.0, 30.0, height - 42.0
    x_low, x_high = _range(xs)
    y_low, y_high = _range(ys)
    if is_share:
        y_low, y_high = max(0.0, y_low), min(1.0, y_high)

    def x_of(x: float) -> float:
        return left + (right - left) * (x - x_low) / (x_high - x_low)

    def y_of(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    parts = [text(2, 14, y_label, style="small")]
    for value in ticks(y_low, y_high):
        y = y_of(value)
        shown = f"{value:.0%}" if is_share else f"{value:,g}"
        parts += [
            line(left, y, right, y, "grid"),
            text(left - 6, y + 4, shown, anchor="end", style="small"),
        ]
    if x_ticks is None:
        x_ticks = ticks(x_low, x_high, count=max(3, width // 90))
    free = right + 20.0
    for value in sorted(set(x_ticks), reverse=True):
        shown, x = f"{value:,g}", x_of(value)
        half = text_width(shown) / 2
        if x + half + 6 <= free:
            parts.append(text(x, bottom + 16, shown, anchor="middle", style="small"))
            free = x - half
    parts.append(text(right, height - 6, x_label, anchor="end", style="small"))
    return x_of, y_of, parts


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest with some air; zero stays the edge where it is the smallest."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if low == 0 else low - air), high + air
