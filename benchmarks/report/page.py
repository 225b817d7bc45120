"""The page: what it was measured on, plots, sample pictures, and every table."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from bootpig_rt.atomic import atomic_write_text
from bootpig_rt.benchmarks.report import plots
from bootpig_rt.benchmarks.report.plots import Bar, Point
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.table import lines as text_lines
from bootpig_rt.pipeline import Pipeline, default_model

_WATERFALL = (
    "published", "torch_cold", "torch_warm", "torch_compile_warm", "diffusers_text_to_image",
    "ours_cold", "ours_warm", "ours_warm_4_images", "bare_unet", "arithmetic",
)  # fmt: skip
_FLOORS = ("bare_unet", "arithmetic", "diffusers_text_to_image")
_WANTED = ("baselines", "reference", "quality", "scale", "profile", "latency", "kernels", "builds")
_SAMPLES = 4


def write_report(results: Sequence[SuiteResult], folder: Path) -> Path:
    """Write `index.html`, `report.md` and the plots.

    The page holds everything itself: no scripts, no other files, no network.

    Args:
        results: Of any suites; what is missing is named with the command that makes it.
        folder: Made where it is not there.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = dict(_plots(results))
    for name, svg in drawn.items():
        atomic_write_text(folder / f"{name}.svg", svg + "\n")
    markdown = ["# Benchmarks", ""]
    for name in drawn:
        markdown += [f"![{name}]({name}.svg)", ""]
    for result in results:
        markdown += ["```", *text_lines(result), "```", ""]
    atomic_write_text(folder / "report.md", "\n".join(markdown))
    page = folder / "index.html"
    atomic_write_text(page, "\n".join(_html(results, drawn)) + "\n")
    return page


def _plots(results: Sequence[SuiteResult]) -> Iterator[tuple[str, str]]:
    by_suite = {result.suite: result for result in results}
    if "baselines" in by_suite:
        yield (
            "time-of-a-picture",
            plots.bars("Time of a picture", _waterfall(by_suite["baselines"])),
        )
    points = [
        point
        for name in ("reference", "quality")
        if name in by_suite
        for row in by_suite[name].rows
        if (point := _judged(row)) is not None
    ]
    if points:
        yield (
            "identity-against-time",
            plots.scatter(
                "Identity against time",
                points,
                x_label="ms a picture, known subject",
                y_label="identity",
            ),
        )
    if "scale" in by_suite:
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in by_suite["scale"].rows:
            x = row.values.get("x")
            if x is not None and row.median_ms is not None:
                groups.setdefault(row.group, []).append((x, row.median_ms))
        for group, found in groups.items():
            name = group.replace(" ", "-")
            yield (
                f"scale-{name}",
                plots.lines(
                    group, {group: found}, x_label=group.removeprefix("over "), y_label="ms"
                ),
            )
    if "profile" in by_suite:
        for group in dict.fromkeys(row.group for row in by_suite["profile"].rows):
            rows = [row for row in by_suite["profile"].rows if row.group == group][:10]
            items = [
                Bar(
                    row.label, row.values.get("share") or 0.0, f"{row.values.get('share') or 0:.0%}"
                )
                for row in rows
            ]
            yield (
                f"profile-{group.replace(' ', '-')}",
                plots.bars(f"Where time goes: {group}", items),
            )


def _judged(row: Row) -> Point | None:
    """A row with a time and an identity, as a point."""
    identity = row.values.get("identity")
    if row.median_ms is None or identity is None:
        return None
    low, high = row.values.get("identity_low"), row.values.get("identity_high")
    return Point(row.label, row.median_ms, identity, low, high)


def _waterfall(result: SuiteResult) -> list[Bar]:
    rows = {row.name: row for row in result.rows}
    items = []
    for name in _WATERFALL:
        row = rows.get(name)
        if row is None or row.median_ms is None:
            continue
        ratio = "" if row.ratio is None or name == "published" else f", {row.ratio.value:.2f}x"
        items.append(
            Bar(row.label, row.median_ms, f"{row.median_ms:.0f} ms{ratio}", name in _FLOORS)
        )
    return items


def _html(results: Sequence[SuiteResult], drawn: dict[str, str]) -> Iterator[str]:
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>bootpig_rt benchmarks</title><style>{_STYLE}</style></head><body><main>"
    yield "<h1>bootpig_rt benchmarks</h1>"
    machines = [result.machine for result in results if result.machine is not None]
    if machines:
        seen = machines[0]
        runtimes = ", ".join(f"{name} {version}" for name, version in seen.versions.items())
        yield (
            f"<p>{escape(seen.processor)}, {seen.threads} threads of {seen.cores} cores. "
            f"{escape(runtimes)}. Commit {escape(seen.commit or 'unknown')}, "
            f"{escape(seen.started)}.</p>"
        )
        yield f"<p><code>{escape(seen.command)}</code></p>"
    if any(machine.is_busy for machine in machines):
        yield (
            '<p class="warn">The machine was busy in at least one suite: ratios suffer little, '
            "absolute times are not worth quoting.</p>"
        )
    for name, svg in drawn.items():
        yield f"<h2>{escape(name.replace('-', ' ').capitalize())}</h2><figure>{svg}</figure>"
    yield from _samples()
    for result in results:
        yield from _tables(result)
    missing = [name for name in _WANTED if name not in {result.suite for result in results}]
    if missing:
        flags = " ".join(f"--suite {name}" for name in missing if name != "profile")
        flags += " --profile traces" if "profile" in missing else ""
        yield f"<p>Not in this report: {', '.join(missing)}."
        yield f"<code>bootpig-rt bench {flags}</code></p>"
    yield "</main></body></html>"


def _tables(result: SuiteResult) -> Iterator[str]:
    yield f"<h2>{escape(result.suite)}</h2>"
    about = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items()
    )
    yield f"<p>{escape(about)}</p>"
    for check in result.checks:
        style = "" if check.is_ok else ' class="warn"'
        word = "checked" if check.is_ok else "WRONG"
        yield f"<p{style}>{word}: {escape(check.name)} {check.value:.3g}, "
        yield f"limit {check.limit:.3g}</p>"
    for group in dict.fromkeys(row.group for row in result.rows):
        yield from _table(group, [row for row in result.rows if row.group == group])


def _table(group: str, rows: Sequence[Row]) -> Iterator[str]:
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row.values)
        if not name.endswith(("_low", "_high"))
    ]
    timed = any(row.samples_ms for row in rows)
    rated = any(row.ratio for row in rows)
    head = [group or "row", *(["median ms", "p95 ms"] if timed else [])]
    if rated:
        against = next(row.ratio_to for row in rows if row.ratio_to)
        head.append(f"faster than {against}")
    head += [name.replace("_", " ") for name in names]
    yield '<div class="box"><table><thead><tr>'
    yield "".join(f'<th scope="col">{escape(each)}</th>' for each in head) + "</tr></thead><tbody>"
    for row in rows:
        found = row.to_dict()
        status = row.notes.get("status", "")
        cells = [
            f'<th scope="row">{escape(row.label)}{" — " + escape(status) if status else ""}</th>'
        ]
        if timed:
            cells += [
                f"<td>{found[key]:.2f}</td>" if key in found else "<td></td>"
                for key in ("median_ms", "p95_ms")
            ]
        if rated:
            cells.append(_ratio_cell(row))
        cells += [f"<td>{_value(row, name)}</td>" for name in names]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _ratio_cell(row: Row) -> str:
    if row.ratio is None:
        return "<td></td>"
    length = min(100.0, 20 * row.ratio.value)
    interval = f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"
    return (
        f'<td><span class="meter" style="width:{length:.0f}px"></span> {row.ratio.value:.2f}x '
        f'<span class="faint">{interval}</span></td>'
    )


def _value(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    low, high = row.values.get(f"{name}_low"), row.values.get(f"{name}_high")
    if low is None or high is None:
        return text
    return f'{text} <span class="faint">{low:.3g} to {high:.3g}</span>'


def _samples() -> Iterator[str]:
    """Pictures of the packaged pair, drawn now: what the numbers are about."""
    folder = default_model().parent / "subjects"
    entries = json.loads((folder / "subjects.json").read_text(encoding="utf-8"))[:_SAMPLES]
    pipe = Pipeline()
    yield "<h2>What is drawn</h2><p>By the packaged pair: reference, then picture.</p>"
    yield '<div class="samples">'
    for entry in entries:
        drawing = folder / entry["file"]
        noun = entry["prompt_class"]
        prompt = f"{noun}, in the middle of a sandy beach"
        image = pipe(prompt, reference_images=drawing, reference_prompt=noun, seed=1).images[0]
        caption = f"{prompt}; drawing by {entry['author']}"
        yield (
            f'<figure><img src="{_data(drawing.read_bytes())}" alt="reference: {escape(noun)}">'
            f'<img src="{_data(_png(image))}" alt="{escape(prompt)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    yield "</div>"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


_STYLE = """
:root{color-scheme:light;--ink:#222;--faint:#777;--line:#e2e2e2;--accent:#2f6f8f}
*{box-sizing:border-box}body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);
background:#fafafa}main{max-width:980px;margin:0 auto;padding:24px 16px 64px;background:#fff}
h1{font-size:26px;margin:0 0 8px}h2{font-size:19px;margin:36px 0 8px}p{margin:4px 0;
overflow-wrap:anywhere}code{font-size:13px}figure{margin:0}svg{width:100%;height:auto}
.box{overflow-x:auto;margin:12px 0}table{border-collapse:collapse;font-size:13.5px;
font-variant-numeric:tabular-nums}th,td{padding:4px 12px 4px 0;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap}thead th{color:var(--faint);font-weight:600}
th:first-child{text-align:left;font-weight:500;white-space:normal;min-width:150px}.faint{color:var(--faint);font-size:12px}
.meter{display:inline-block;height:9px;background:var(--accent);border-radius:2px}
.warn{color:#9a3412;font-weight:600}.samples{display:flex;flex-wrap:wrap;gap:16px}
.samples img{width:144px;max-width:48%;image-rendering:pixelated}
figcaption{font-size:12px;color:var(--faint);max-width:300px}
"""
