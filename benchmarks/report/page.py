"""The report: one page that holds everything itself, and Markdown with files beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bootpig_rt.benchmarks.machine import Machine
from bootpig_rt.benchmarks.report import samples as drawn
from bootpig_rt.benchmarks.report.figures import Figure, figures
from bootpig_rt.benchmarks.report.samples import Sample
from bootpig_rt.benchmarks.report.style import STYLE
from bootpig_rt.benchmarks.report.svg import as_file
from bootpig_rt.benchmarks.report.tables import groups, html_table, labels, markdown_table
from bootpig_rt.benchmarks.result import Check, SuiteResult
from bootpig_rt.files.atomic import atomic_write_bytes, atomic_write_text

_SECTIONS = (
    ("picture", "What a picture takes", ("baselines",)),
    ("quality", "Quality against time", ("reference", "quality")),
    ("growth", "How time and memory grow", ("scale",)),
    ("profile", "Where a step's time goes", ("profile",)),
    ("latency", "Latency", ("latency",)),
    ("kernels", "Kernels", ("kernels",)),
    ("builds", "Builds", ("builds",)),
)
_BUSY = (
    "The machine was busy during {}: ratios suffer little, absolute times are not worth quoting."
)


def write_report(
    results: Sequence[SuiteResult], folder: Path, *, samples: int = 3, pair: Path | None = None
) -> Path:
    """Write `index.html`, `report.md`, and the plots and pictures that the Markdown shows.

    The page needs no scripts, no other files and no network.

    Args:
        results: Of any suites; what is missing is named with the command that makes it.
        folder: Made where it is not there.
        samples: Subjects that are drawn now; 0 for none.
        pair: Folder of the pair that draws them; None: the packaged one.

    Returns:
        The page.

    Raises:
        CheckpointError: Samples are asked for and this installation has no pair.
        StorageError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = drawn.draw(samples, pair) if samples else []
    plots = {
        theme: figures(theme, [each for each in results if each.suite in suites])
        for theme, _, suites in sections(results)
    }
    for figure in (each for found in plots.values() for each in found):
        atomic_write_text(folder / f"{figure.name}.svg", as_file(figure.wide))
    for number, sample in enumerate(pictures):
        for index, png in enumerate(sample.pngs):
            atomic_write_bytes(folder / f"sample-{number}-{index}.png", png)
    atomic_write_text(folder / "report.md", "\n".join(_markdown(results, plots, pictures)))
    page = folder / "index.html"
    atomic_write_text(page, "\n".join(_html(results, plots, pictures)) + "\n")
    return page


def sections(results: Sequence[SuiteResult]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Anchor, title and suites of each section; suites that no section knows come last."""
    known = {suite for *_, suites in _SECTIONS for suite in suites}
    others = tuple(dict.fromkeys(each.suite for each in results if each.suite not in known))
    return [*_SECTIONS, *([("other", "Other suites", others)] if others else [])]


def _html(
    results: Sequence[SuiteResult], plots: dict[str, list[Figure]], pictures: Sequence[Sample]
) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>bootpig_rt benchmarks</title><style>{STYLE}</style></head><body><main>"
    yield "<h1>bootpig_rt benchmarks</h1>"
    busy = _busy(results)
    if busy:
        yield f'<p class="warn">{escape(busy)}</p>'
    links = "".join(
        f'<a href="#{theme}">{escape(title)}</a>' for theme, title, _ in sections(results)
    )
    yield f"<nav>{links}</nav>"
    yield from _tiles(results)
    for theme, title, suites in sections(results):
        yield f'<section id="{theme}"><h2>{escape(title)}</h2>'
        yield '<div class="pair">' if theme in ("growth", "profile", "latency") else "<div>"
        for each in plots[theme]:
            svg = each.wide
            if each.wide != each.narrow:
                svg = f'<div class="wide">{each.wide}</div><div class="narrow">{each.narrow}</div>'
            yield f"<figure>{svg}<figcaption>{escape(each.caption)}</figcaption></figure>"
        yield "</div>"
        for result in results:
            if result.suite in suites:
                yield from _suite(result)
        for suite in _missing(results, suites):
            yield f"<p>Not measured: {suite}. <code>{_command(suite)}</code></p>"
        yield "</section>"
        if theme == "picture" and pictures:
            yield from _samples(results, pictures)
    yield '<section id="machine"><h2>What it was measured on</h2>'
    for machine, names in _machines(results):
        yield f"<h3>{escape(names)}</h3><dl>"
        for name, words in _about(machine):
            yield f"<dt>{name}</dt><dd>{escape(words)}</dd>"
        yield "</dl>"
    yield "</section></main></body></html>"


def _suite(result: SuiteResult) -> Iterator[str]:
    yield f'<h3>{escape(result.suite)}</h3><p class="faint">{escape(_settings(result))}</p>'
    yield from (f'<p class="faint">{escape(_goal(goal))}</p>' for goal in result.goals)
    right = [check for check in result.checks if check.is_ok]
    for check in result.checks:
        if not check.is_ok:
            yield f'<p class="warn">WRONG: {_check(check)}</p>'
    if right:
        words = "1 check, within its limit" if len(right) == 1 else f"{len(right)} checks, all"
        words += "" if len(right) == 1 else " within their limits"
        yield f'<details class="faint"><summary>{words}</summary>'
        yield from (f"<p>{_check(check)}</p>" for check in right)
        yield "</details>"
    for group, rows in groups(result):
        yield from html_table(group, rows, labels(result))


def _goal(goal: Check) -> str:
    word = "reached" if goal.is_ok else "missed"
    return f"goal {word}: {goal.name} {goal.value:.2f}, at most {goal.limit:g}"


def _check(check: Check) -> str:
    return escape(f"{check.name}, difference {check.value:.2g}, limit {check.limit:g}")


def _tiles(results: Sequence[SuiteResult]) -> Iterator[str]:
    rows = {row.name: row for each in results if each.suite == "baselines" for row in each.rows}
    names = [name for name in ("ours_cold", "ours_warm", "ours_warm_4_images") if name in rows]
    if names:
        yield '<div class="tiles">'
        for row in (rows[name] for name in names):
            ratio = "-" if row.ratio is None else f"{row.ratio.value:.2f}x"
            words = f"{escape(row.label)}: {row.median_ms or 0:,.0f} ms"
            yield f'<div class="tile"><b>{ratio}</b><span class="faint">{words}</span></div>'
        yield '</div><p class="faint">Times faster than the published way, in the same rounds.</p>'


def _samples(results: Sequence[SuiteResult], pictures: Sequence[Sample]) -> Iterator[str]:
    yield '<section id="samples"><h2>What is drawn</h2>'
    yield f"<p>{escape(drawn.origin(results, pictures))}</p>"
    yield '<div class="box samples" tabindex="0" role="region" aria-label="samples"><table>'
    heads = drawn.headers(results)
    cells = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    yield f"<thead><tr>{cells}</tr></thead><tbody>"
    for sample in pictures:
        cells = ""
        for head, png in zip(heads, sample.pngs, strict=True):
            alt = escape(f"{head}: {sample.prompt}")
            data = base64.b64encode(png).decode()
            cells += f'<td><img src="data:image/png;base64,{data}" alt="{alt}"></td>'
        words = escape(f"{sample.prompt}; drawing by {sample.author}")
        yield f'<tr>{cells}</tr><tr><td colspan="{len(heads)}" class="faint">{words}</td></tr>'
    yield "</tbody></table></div></section>"


def _markdown(
    results: Sequence[SuiteResult], plots: dict[str, list[Figure]], pictures: Sequence[Sample]
) -> Iterator[str]:
    yield "# bootpig_rt benchmarks\n"
    busy = _busy(results)
    if busy:
        yield f"**{busy}**\n"
    for theme, title, suites in sections(results):
        yield f"## {title}\n"
        for each in plots[theme]:
            yield f"![{each.caption}]({each.name}.svg)\n"
        for result in results:
            if result.suite in suites:
                yield f"### {result.suite}\n\n{_settings(result)}\n"
                for check in result.checks:
                    word = "checked" if check.is_ok else "**WRONG**"
                    yield f"- {word}: {check.name} {check.value:.2g}, limit {check.limit:g}"
                yield from (f"- {_goal(goal)}" for goal in result.goals)
                yield ""
                for group, rows in groups(result):
                    yield from markdown_table(group, rows, labels(result))
        for suite in _missing(results, suites):
            yield f"Not measured: {suite}. `{_command(suite)}`\n"
        if theme == "picture" and pictures:
            heads = drawn.headers(results)
            yield f"## What is drawn\n\n{drawn.origin(results, pictures)}\n"
            yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
            for number, sample in enumerate(pictures):
                files = [f"sample-{number}-{index}.png" for index in range(len(heads))]
                yield "| " + " | ".join(f"![{sample.prompt}]({name})" for name in files) + " |"
            yield ""
    yield "## What it was measured on\n"
    for machine, names in _machines(results):
        yield f"### {names}\n"
        yield from (f"- {name}: {words}" for name, words in _about(machine))
        yield ""


def _machines(results: Sequence[SuiteResult]) -> list[tuple[Machine, str]]:
    """Each run, told apart by processor, commit and command, with the suites that it was of."""
    found: dict[tuple[str, ...], tuple[Machine, list[str]]] = {}
    for result in results:
        seen = result.machine
        if seen is not None:
            key = (seen.processor, str(seen.commit), seen.command)
            found.setdefault(key, (seen, []))[1].append(result.suite)
    return [(seen, ", ".join(names)) for seen, names in found.values()]


def _about(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "processor", f"{machine.processor}, {machine.threads} threads of {machine.cores} cores"
    yield "memory", f"{machine.memory_bytes / 2**30:.1f} GiB"
    yield "system", f"{machine.system}, Python {machine.python}"
    yield "versions", ", ".join(f"{name} {word}" for name, word in machine.versions.items())
    yield "commit", machine.commit or "unknown"
    yield "command", machine.command
    yield "started", machine.started
    others = "unknown" if machine.busy_share is None else f"{machine.busy_share:.0%} of the cores"
    yield "load", f"noise {machine.noise:.1%}, other processes {others}"


def _busy(results: Sequence[SuiteResult]) -> str:
    names = [each.suite for each in results if each.machine is not None and each.machine.is_busy]
    return _BUSY.format(", ".join(names)) if names else ""


def _settings(result: SuiteResult) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())


def _missing(results: Sequence[SuiteResult], suites: Sequence[str]) -> list[str]:
    return [name for name in suites if name not in {result.suite for result in results}]


def _command(suite: str) -> str:
    what = "--profile traces" if suite == "profile" else f"--suite {suite}"
    return f"bootpig-rt bench {what} --output {suite}.json"
