"""Rows as tables: of text for a terminal, of Markdown for pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bootpig_rt.benchmarks.result import LEAST_ROUNDS, Row, SuiteResult, Target
from bootpig_rt.benchmarks.stats import in_digits

NAMES = {
    "psnr_db": "subject PSNR, dB",
    "perceptual": "perceptual distance",
    "network": "identity by the network",
    "scene": "scene",
    "seam_levels": "seam, levels of 255",
    "changed_outside": "pixels changed outside the mask",
    "depth": "depth, from the own map",
    "chance": "depth, from another map",
    "followed": "depth, from the given map",
    "peak_bytes": "most memory",
    "own_bytes": "most without mapped files",
    "bundle_bytes": "bundle",
    "graphs_and_engines_bytes": "graphs and engines",
    "table_bytes": "table",
    "from_exact_db": "pixels from `exact`, dB",
    "pixels_db": "pixels as it is, dB",
    "pictures_per_s": "pictures a second",
    "alone_ms": "alone, ms",
    "offered_per_s": "asked for, pictures a second",
    "goodput_per_s": "in time, pictures a second",
    "done_per_s": "drawn, pictures a second",
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "p99_ms": "p99, ms",
    "refused_share": "refused",
    "late_share": "too late",
    "broken_share": "connection broke",
    "lost": "lost",
    "refusal_p99_ms": "p99 of refusals, ms",
    "batch_mean": "pictures a launch",
    "rss_bytes": "resident memory",
    "slope_bytes": "growth an hour",
    "fds": "open files",
    "drift_share": "drift",
    "step_ms": "step, ms",
    "per_row_ms": "row of a step, ms",
    "load_ms": "load, ms",
    "cold_ms": "process to first picture, ms",
    "to_float32_db": "PSNR to float32, dB",
    "times_floor": "times its floor",
    "gflop": "GFLOP",
    "gflop_per_s": "GFLOP a second",
    "share": "share",
    "calls": "operators a step",
}
"""Of values, where their own name does not read well."""


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Head and lines of a table; columns that no row fills are left out.

    A ratio is shown to the digits that its interval supports, with the interval, and only where it
    is of ten rounds or more.
    """
    values = [
        name
        for name in dict.fromkeys(name for row in rows for name in row.values)
        if not name.endswith(("_low", "_high"))
    ]
    to = next((row.ratio.to for row in rows if row.ratio is not None), None)
    base = next((row.label for row in rows if row.name == to), to)
    head = ["", "ms", f"faster than {base}", *map(_name, values), "remark"]
    lines = [
        [row.label, _ms(row.median_ms), _ratio(row), *(_value(row, name) for name in values),
         _remark(row)]
        for row in rows
    ]  # fmt: skip
    keep = [n for n, _ in enumerate(head) if n == 0 or any(line[n] for line in lines)]
    return [[line[n] for n in keep] for line in (head, *lines)]


def line(row: Row) -> list[str]:
    """Label, ms and ratio of a row, as `cells` shows them."""
    return [row.label, _ms(row.median_ms), _ratio(row)]


def markdown(rows: Sequence[Row]) -> str:
    """A table of Markdown."""
    head, *lines = cells(rows)
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def targets_markdown(result: SuiteResult) -> str:
    """What was aimed at and what came of it, as a table of Markdown; empty without targets."""
    if not result.targets:
        return ""
    lines = [
        f"| {each.what} | {each.bound} | {_found(each)} | {each.verdict} |"
        for each in result.targets
    ]
    return "\n".join(["| target | aimed at | found | |", "|---|---:|---:|---|", *lines])


def _found(target: Target) -> str:
    return "" if target.found is None else f"{target.found:.3g}"


def text(result: SuiteResult) -> Iterator[str]:
    """Lines for a terminal: what it was measured on, what was compared, one table a group."""
    yield f"== {result.suite} on {result.device}"
    yield "   " + ", ".join(f"{name} {value}" for name, value in result.settings.items())
    if result.machine is not None:
        seen = result.machine
        runtimes = ", ".join(f"{name} {version}" for name, version in seen.versions.items())
        yield f"   {seen.name}, {seen.threads} threads of {seen.cores} cores, {runtimes}"
        others = "unknown" if seen.busy_share is None else f"{seen.busy_share:.0%}"
        if seen.arithmetic:
            yield f"   {seen.arithmetic}"
        yield f"   commit {seen.commit or 'unknown'}, noise {seen.noise:.1%}, others {others}"
        if seen.is_busy:
            yield "   The machine was busy: do not quote these times. Ratios suffer less."
    yield from (f"   {remark}" for remark in result.remarks)
    for check in result.checks:
        verdict = "ok" if check.is_ok else "WRONG"
        yield f"   {verdict}: {check.name} {check.value} (limit {check.limit:g})"
    for target in result.targets:
        found = f", found {_found(target)}" if target.found is not None else ""
        yield f"   {target.verdict}: {target.what}, {target.bound}{found}"
    for group in dict.fromkeys(row.group for row in result.rows):
        table = cells([row for row in result.rows if row.group == group])
        table[0][0] = group or "rows"
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        yield ""
        for first, *others_of_line in table:
            sized = zip(others_of_line, widths[1:], strict=True)
            yield "  ".join([f"{first:<{widths[0]}}", *(f"{c:>{w}}" for c, w in sized)]).rstrip()
    yield ""


def _name(value: str) -> str:
    base = value.removesuffix("_change")
    name = NAMES.get(base, base.removesuffix("_bytes").removesuffix("_ms").replace("_", " "))
    return f"{name}, change" if value.endswith("_change") else name


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: Row) -> str:
    if row.ratio is None or len(row.samples_ms) < LEAST_ROUNDS:
        return ""
    return "1" if row.ratio.to == row.name else str(row.ratio)


def _remark(row: Row) -> str:
    if row.status or not row.ratio or len(row.samples_ms) >= LEAST_ROUNDS:
        return "; ".join(filter(None, (row.status, row.notes)))
    return f"too few rounds for a ratio: {len(row.samples_ms)}"


def _value(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    low, high = (row.values.get(f"{name}_{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        sign = "+" if name.endswith("_change") else ""
        shown = [in_digits(x, low, high) for x in (value, low, high)]
        shown = [sign * (not x.startswith("-")) + x for x in shown]
        return f"{shown[0]} ({shown[1]} to {shown[2]})"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB" if value >= 1e8 else f"{value / 1e6:.3g} MB"
    if name.endswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
