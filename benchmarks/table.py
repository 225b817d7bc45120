"""Results as lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bootpig_rt.benchmarks.result import Row, SuiteResult


def lines(result: SuiteResult) -> Iterator[str]:
    """One table a group, headed by what it was measured on."""
    yield f"== {result.suite}"
    yield "   " + ", ".join(f"{name} {value}" for name, value in result.settings.items())
    if result.machine is not None:
        seen = result.machine
        runtimes = ", ".join(f"{name} {version}" for name, version in seen.versions.items())
        yield f"   {seen.processor}, {seen.threads} threads of {seen.cores} cores, {runtimes}"
        load = f"noise {seen.noise:.1%}, others {seen.busy_share:.0%}"
        yield f"   commit {seen.commit or 'unknown'}, {load}"
        if seen.is_busy:
            yield "   The machine was busy: do not quote these times. Ratios suffer less."
    for check in result.checks:
        verdict = "ok" if check.is_ok else "WRONG"
        yield f"   {verdict}: {check.name} {check.value:.3g} (limit {check.limit:.3g})"
    for group in dict.fromkeys(row.group for row in result.rows):
        rows = [row for row in result.rows if row.group == group]
        yield ""
        yield from _group(group, rows)
    yield ""


def _group(group: str, rows: list[Row]) -> Iterator[str]:
    width = max(30, *(len(row.label) for row in rows))
    against = next((row.ratio_to for row in rows if row.ratio_to), None)
    head = f"{group or 'rows':{width}}"
    if any(row.samples_ms for row in rows):
        head += f"{'median ms':>11}{'p95':>9}{'min':>9}"
    if against:
        head += f"  times faster than {against}"
    yield head
    for row in rows:
        yield f"{row.label:{width}}" + _numbers(row)


def _numbers(row: Row) -> str:
    text = ""
    if row.samples_ms:
        found = row.to_dict()
        text += f"{found['median_ms']:11.2f}{found['p95_ms']:9.2f}{found['min_ms']:9.2f}"
    if row.ratio is not None:
        text += f"  {row.ratio.value:.2f} [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"
    text += "".join(f"  {name} {_short(value)}" for name, value in row.values.items())
    if "status" in row.notes:
        text += f"  {row.notes['status']}"
    return text


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
