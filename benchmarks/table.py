"""Results as lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bootpig_rt.benchmarks.result import Row, SuiteResult

_TIMES = {
    "median_ms": "median ms", "spread": "spread", "p95_ms": "p95", "p99_ms": "p99",
    "min_ms": "min",
}  # fmt: skip


def lines(result: SuiteResult) -> Iterator[str]:
    """One table a group, headed by what it was measured on."""
    yield f"== {result.suite}"
    yield "   " + ", ".join(f"{name} {value}" for name, value in result.settings.items())
    if result.machine is not None:
        seen = result.machine
        runtimes = ", ".join(f"{name} {version}" for name, version in seen.versions.items())
        yield f"   {seen.processor}, {seen.threads} threads of {seen.cores} cores, {runtimes}"
        others = "unknown" if seen.busy_share is None else f"{seen.busy_share:.0%}"
        load = f"noise {seen.noise:.1%}, others {others}"
        yield f"   commit {seen.commit or 'unknown'}, {load}"
        if seen.is_busy:
            yield "   The machine was busy: do not quote these times. Ratios suffer less."
    for check in result.checks:
        verdict = "ok" if check.is_ok else "WRONG"
        yield f"   {verdict}: {check.name} {check.value:.3g} (limit {check.limit:.3g})"
    for goal in result.goals:
        verdict = "met" if goal.is_ok else "missed"
        yield f"   goal {verdict}: {goal.name} {goal.value:.3g} (goal {goal.limit:.3g})"
    for group in dict.fromkeys(row.group for row in result.rows):
        rows = [row for row in result.rows if row.group == group]
        yield ""
        yield from _group(group, rows)
    yield ""


def _group(group: str, rows: list[Row]) -> Iterator[str]:
    against = next((row.ratio_to for row in rows if row.ratio_to), None)
    seen = {name for row in rows for name in row.to_dict()}
    times = [name for name in _TIMES if name in seen]
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row.values)
        if not name.endswith(("_low", "_high"))
    ]
    head = [group or "rows"]
    head += [_TIMES[name] for name in times]
    head += [f"times faster than {against}"] if against else []
    cells = [[*head, *names]]
    for row in rows:
        line = [row.label, *_times(row, times)]
        line += [_ratio(row)] if against else []
        cells.append([*line, *(_value(row, name) for name in names)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    statuses = ["", *(row.notes.get("status", "") for row in rows)]
    for line, status in zip(cells, statuses, strict=True):
        first, *others = (
            f"{cell:{'<' if n == 0 else '>'}{width}}"
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join([first, *others, status]).rstrip()


def _times(row: Row, names: list[str]) -> list[str]:
    found = row.to_dict()
    return [
        "" if name not in found else f"{found[name]:{'.1%' if name == 'spread' else '.2f'}}"
        for name in names
    ]


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    ends = row.ratio.value, row.ratio.low, row.ratio.high
    value, low, high = (f"{each:.2f}" if each >= 0.1 else f"{each:.2g}" for each in ends)
    return f"{value} [{low}, {high}]"


def _value(row: Row, name: str) -> str:
    if name not in row.values:
        return ""
    text = _short(row.values[name])
    low, high = (row.values.get(f"{name}_{end}") for end in ("low", "high"))
    return text if low is None else f"{text} [{_short(low)}, {_short(high)}]"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
