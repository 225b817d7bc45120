"""Tables of results, once as HTML with intervals as bars and once as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bootpig_rt.benchmarks.report.plots import interval
from bootpig_rt.benchmarks.result import Row, SuiteResult

_TIMES = ("median_ms", "p95_ms")
_HIDDEN = ("x",)  # where a point stands in a plot; the row's label says it in words
_SHARES = ("identity", "scene", "nearest_to")


def groups(result: SuiteResult) -> Iterator[tuple[str, list[Row]]]:
    """Rows that belong together, by the name of their group; in the order of the suite."""
    for group in dict.fromkeys(row.group for row in result.rows):
        yield group or result.suite, [row for row in result.rows if row.group == group]


def labels(result: SuiteResult) -> dict[str, str]:
    """What rows are called, by name: rows are compared with rows of other groups too."""
    return {row.name: row.label for row in result.rows}


def html_table(group: str, rows: Sequence[Row], labels: Mapping[str, str]) -> Iterator[str]:
    """One table in a box that scrolls by itself."""
    head, names = _head(rows, labels)
    columns = _columns(rows)
    largest = max([min(row.ratio.high, 2 * row.ratio.value) for row in rows if row.ratio] or [1.0])
    cells = "".join(f'<th scope="col">{escape(each)}</th>' for each in ("", *head))
    yield f'<div class="box" tabindex="0" role="region" aria-label="{escape(group)}"><table>'
    yield f"<caption>{escape(group)}</caption><thead><tr>{cells}</tr></thead><tbody>"
    for row in rows:
        status = row.notes.get("status", "")
        words = f' <span class="faint">{escape(status)}</span>' if status else ""
        cells = f'<th scope="row">{escape(row.label)}{words}</th>'
        for text in _times(row, columns):
            cells += f"<td>{text}</td>"
        if _against(rows):
            bar = ""
            if row.ratio is not None:
                bar = interval(row.ratio.value, row.ratio.low, row.ratio.high, largest)
            cells += _cell(_ratio(row), bar)
        for name in names:
            low, value, high = (row.values.get(f"{name}{end}") for end in ("_low", "", "_high"))
            bar = ""
            is_share = low is not None and high is not None and 0 <= low <= high <= 1
            if is_share and low is not None and value is not None and high is not None:
                bar = interval(value, low, high, 1.0)
            cells += _cell(_value(row, name), bar)
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(words: str, bar: str) -> str:
    """Words to the right, a bar to the left: bars of a column stand below each other."""
    if not bar:
        return f"<td>{escape(words)}</td>"
    return f'<td><span class="with">{bar}{escape(words)}</span></td>'


def markdown_table(group: str, rows: Sequence[Row], labels: Mapping[str, str]) -> Iterator[str]:
    """The same numbers."""
    head, names = _head(rows, labels)
    columns = _columns(rows)
    yield f"| {_plain(group)} | " + " | ".join([*map(_plain, head), ""]).rstrip()
    yield "|---|" + "---:|" * len(head)
    for row in rows:
        status = row.notes.get("status", "")
        cells = [_plain(f"{row.label} ({status})" if status else row.label)]
        cells += _times(row, columns)
        if _against(rows):
            cells.append(_ratio(row))
        cells += [_value(row, name) for name in names]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _head(rows: Sequence[Row], labels: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Names of the columns after the first, and the values among them."""
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row.values)
        if not name.endswith(("_low", "_high")) and name not in _HIDDEN
    ]
    head = [name.replace("_", " ") for name in _columns(rows)]
    against = _against(rows)
    head += [f"times faster than: {labels.get(against, against)}"] if against else []
    return [*head, *(name.replace("_", " ") for name in names)], names


def _against(rows: Sequence[Row]) -> str | None:
    """The row that ratios are to; None where there are none."""
    return next((row.ratio_to for row in rows if row.ratio is not None), None)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Times that any of the rows has: few samples have no high percentiles."""
    had = {name for row in rows for name in row.to_dict()}
    return [name for name in _TIMES if name in had]


def _times(row: Row, columns: Sequence[str]) -> list[str]:
    found = row.to_dict()
    return [f"{found[name]:,.2f}" if name in found else "" for name in columns]


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"


def _value(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    low, high = row.values.get(f"{name}_low"), row.values.get(f"{name}_high")
    text = _short(name, value)
    if low is None or high is None:
        return text
    return f"{text} ({_short(name, low).removesuffix('%')} to {_short(name, high)})"


def _short(name: str, value: float) -> str:
    if name.endswith("share") or name.startswith(_SHARES):
        return f"{round(value, 3) + 0.0:.1%}"
    if name.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
