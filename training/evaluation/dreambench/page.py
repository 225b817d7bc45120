"""The report as people read it: a table for the terminal, a page in Markdown, CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from bootpig_rt.training.evaluation.dreambench.data import DreamBench
from bootpig_rt.training.evaluation.dreambench.measure import Measured
from bootpig_rt.training.evaluation.dreambench.published import PublishedRow
from bootpig_rt.training.evaluation.dreambench.report import OF_PROTOCOL, Report

_HEAD = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "efficientnet": "EfficientNet",
    "masked_dino": "MDINO",
    "masked_clip_i": "MCLIP-I",
    "masked_efficientnet": "masked EfficientNet",
    "paste": "paste",
}
_PHOTOGRAPH_ROWS = {
    "copy": "a copied photograph",
    "real": "real photographs",
    "same_class": "photographs of another subject, same noun",
    "other": "photographs of another noun",
}
_SUBSET_ROWS = {
    "objects": "objects",
    "live": "live subjects",
    "recontext": "prompts: another scene",
    "accessory": "prompts: something worn",
    "property": "prompts: another property",
}


def text_table(report: Report) -> str:
    """For a terminal."""
    columns, rows = _rows(report)
    heads = [_HEAD[name] for name in columns]
    widths = [max(7, len(head)) for head in heads]
    first = max(len(label) for label, _ in rows)
    lines = ["  ".join([" " * first, *(h.rjust(w) for h, w in zip(heads, widths, strict=True))])]
    for label, cells in rows:
        values = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([label.ljust(first), *values]))
    return "\n".join([*lines, *(f"- {remark}" for remark in report["remarks"])])


def markdown_page(
    report: Report, published: Sequence[PublishedRow], sheets: Sequence[str] = ()
) -> str:
    """The page: remarks, numbers, the published table, settings, sheets by their paths."""
    settings = report["settings"]
    size = (report["num_subjects"], report["num_prompts"], report["pictures_per_prompt"])
    parts = [
        f"# DreamBench: {settings['model']}",
        "{} subjects, {} prompts, {} pictures of each.".format(*size),
        "\n".join(f"- {remark}" for remark in report["remarks"]),
        "## Scores",
        "Means over a subject's pictures, then over subjects; 95 % intervals are from a bootstrap "
        "over subjects.",
        _markdown_table(*_rows(report)),
        _copying_text(report),
        "## Beside the published table",
        "As printed by the source named; most rows at second hand. References, prompts and crops "
        "differ, so read differences of .02 as noise. A remark says whose protocol is known to "
        "differ.",
        _published_table(report, published),
        "## How it was drawn",
        _settings_table(report),
        "## Subjects",
        _subjects_table(report),
    ]
    if sheets:
        parts += ["## Sheets", "\n\n".join(f"![{sheet}]({sheet})" for sheet in sheets)]
    return "\n\n".join(part for part in parts if part) + "\n"


def subjects_csv(report: Report, bench: DreamBench) -> str:
    """A line for each subject."""
    names = list(next(iter(report["subjects"].values())))
    rows = [
        [subject.name, subject.noun, "live" if subject.is_live else "object"]
        + [report["subjects"][subject.name][name] for name in names]
        for subject in bench.subjects
    ]
    return _csv(["subject", "noun", "group", *names], rows)


def pictures_csv(bench: DreamBench, measured: Measured, per_prompt: int) -> str:
    """A line for each picture."""
    rows = []
    for s, subject in enumerate(bench.subjects):
        for k in range(len(subject.prompts) * per_prompt):
            prompt = subject.prompts[k // per_prompt]
            file = f"{subject.name}/{k // per_prompt:02}-{k % per_prompt}.png"
            scores = [round(float(metric.values[s][k]), 4) for metric in measured.metrics]
            rows.append([file, subject.name, prompt.text, prompt.kind, *scores])
    heads = ["picture", "subject", "prompt", "kind", *(each.name for each in measured.metrics)]
    return _csv(heads, rows)


def _rows(report: Report) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Columns that there are, and rows of cells."""
    scores = report.get("scores", {})
    columns = [name for name in _HEAD if name in scores or name in report["photographs"]]
    rows = []
    if scores:
        pair = report["settings"]["model"]
        rows.append((f"{pair} (this run)", [_value(scores.get(name)) for name in columns]))
        rows.append(("95 % interval", [_interval(scores.get(name)) for name in columns]))
        for name, label in _SUBSET_ROWS.items():
            found = report["subsets"][name]
            if any(found.values()):
                rows.append((f"  {label}", [_value(found.get(each)) for each in columns]))
    for row, label in _PHOTOGRAPH_ROWS.items():
        cells = [_number(report["photographs"].get(name, {}).get(row)) for name in columns]
        rows.append((label, cells))
    return columns, rows


def _published_table(report: Report, published: Sequence[PublishedRow]) -> str:
    scores, settings = report["scores"], report["settings"]
    own = [_value(scores.get(name)) for name in OF_PROTOCOL]
    remark = "" if report["is_comparable"] else "not comparable, see above"
    lines = [
        "| method | base | references | DINO | CLIP-I | CLIP-T | source | remark |",
        "|---|---|---|---|---|---|---|---|",
        _line(
            [
                f"**{settings['model']}**",
                "",
                settings["references"],
                *(f"**{each}**" if each else "" for each in own),
                "this run",
                remark,
            ]
        ),
    ]
    for row in published:
        numbers = [_number(each) for each in (row.dino, row.clip_i, row.clip_t)]
        lines.append(
            _line([row.method, row.base, row.references, *numbers, row.source, row.remark])
        )
    return "\n".join(lines)


def _settings_table(report: Report) -> str:
    settings, drawing = report["settings"], report["drawing"]
    skipped = ("subjects", "taken_whole")
    rows = [(name, value) for name, value in settings.items() if name not in skipped]
    rows.append(("photographs taken whole", len(settings["taken_whole"])))
    rows += [(f"encoder {each['name']}", each["text"]) for each in report["encoders"]]
    rows += [(name.replace("_", " "), value) for name, value in drawing.items()]
    lines = [_line([name.replace("_", " "), _plain(value)]) for name, value in rows]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


def _subjects_table(report: Report) -> str:
    names = list(next(iter(report["subjects"].values())))
    lines = [
        _line([subject, *(_number(found[name]) for name in names)])
        for subject, found in report["subjects"].items()
    ]
    heads = _line(["subject", *(_HEAD[name] for name in names)])
    return "\n".join([heads, "|---" * (len(names) + 1) + "|", *lines])


def _copying_text(report: Report) -> str:
    copying = report["copying"]
    if copying is None:
        return ""
    share = copying["share_over_limit"]["value"]
    return (
        f"Copy-paste: the best fit of a reference in a picture. Photographs of the same subject "
        f"that were not given have {copying['photographs']:.3f} on average and one in twenty is "
        f"above {copying['limit']:.3f}; of the pictures {100 * share:.1f} % are."
    )


def _markdown_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    heads = _line(["", *(_HEAD[name] for name in columns)])
    lines = [_line([label.strip(), *cells]) for label, cells in rows]
    return "\n".join([heads, "|---" * (len(columns) + 1) + "|", *lines])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def _value(found: dict[str, float] | None) -> str:
    return "" if found is None else _number(found["value"])


def _interval(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{_number(found['low'])}-{_number(found['high'])}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
