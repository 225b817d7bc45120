"""Plots of the suites `serving` and `soak`, from their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.tables import NAMES

_HEIGHT = 9.0
_COLOURS = {"ours": "#2b6cb0", "ours_unbatched": "#63b3ed", "fastapi": "#718096",
            "litserve": "#dd6b20"}  # fmt: skip

Plot = tuple[Callable[[Any], None], float]


def plots_of(result: SuiteResult) -> Iterator[Plot]:
    """What draws each plot, and its height."""
    if result.suite == "serving":
        lines = {name: rows for name, rows in _lines(result).items() if len(rows) > 1}
        limit_ms = result.settings.get("limit_ms")
        if lines:
            yield partial(_against_load, lines=lines, values=("goodput_per_s",)), _HEIGHT
            yield (
                partial(_against_load, lines=lines, values=("p50_ms", "p99_ms"), limit=limit_ms),
                _HEIGHT,
            )
    elif result.suite == "soak":
        minutes = [row for row in result.rows if row.name.startswith("minute ")]
        for name in ("rss_bytes", "fds", "p99_ms"):
            yield partial(_over_time, rows=minutes, value=name), _HEIGHT / 2


def _lines(result: SuiteResult) -> dict[str, list[Row]]:
    """Rows of each server by the load that they were offered."""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        name = row.name.split(" ")[0].removesuffix("_overload")
        if " " in row.name or row.name.endswith("_overload"):
            found.setdefault(name, []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row.values.get("offered_per_s") or 0.0)
    return found


def _against_load(
    axes: Any, lines: dict[str, list[Row]], values: Sequence[str], limit: float | None = None
) -> None:
    """Values over pictures that were asked for, a line for each server."""
    for name, rows in lines.items():
        for value, style in zip(values, ("-o", "--s"), strict=False):
            known = [row for row in rows if row.values.get(value) and row.values["offered_per_s"]]
            axes.plot(
                [row.values["offered_per_s"] for row in known],
                [row.values[value] for row in known],
                style, color=_COLOURS.get(name), markersize=3, linewidth=1,
                label=name if len(values) == 1 else f"{name}, {NAMES.get(value, value)}",
            )  # fmt: skip
    if limit is not None:
        axes.axhline(limit, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    if len(values) > 1:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(NAMES["offered_per_s"])
    axes.set_ylabel(NAMES[values[0]] if len(values) == 1 else "latency, ms")
    axes.legend(fontsize=7, frameon=False)


def _over_time(axes: Any, rows: Sequence[Row], value: str) -> None:
    """A value minute by minute, from zero."""
    scale = 1e-6 if value.endswith("_bytes") else 1.0
    known = [row for row in rows if row.values.get(value) is not None]
    axes.plot(
        [float(row.label) for row in known], [scale * (row.values[value] or 0) for row in known],
        "-o", color=_COLOURS["ours"], markersize=2, linewidth=1,
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minute")
    axes.set_ylabel(NAMES.get(value, value) + (", MB" if scale != 1.0 else ""))
