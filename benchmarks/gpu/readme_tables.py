"""The README's tables and plot of what a GPU measured, from a file of `bench-gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bootpig_rt.benchmarks.gpu import ladder
from bootpig_rt.benchmarks.gpu.attention_ways import attention_ways
from bootpig_rt.benchmarks.report.plots import Bar, waterfall
from bootpig_rt.benchmarks.report.svg import as_file

MEASURED = "gpu-h200.json"

_OURS_WARM = f"{ladder.OURS}_warm"
_CHAIN = ("published", "sdpa", "single", "table_warm", "cuda_graph_warm", "shared_rows_warm")
"""Rungs of the plot: each is quicker than the one before it. On the host alone, others are not."""


def plot(folder: Path) -> str:
    """Time of a picture of a known subject, rung by rung, as an SVG file."""
    rows = _rows(folder)
    times, labels = _times(rows, "r1-b1"), _labels(rows)
    found = [(labels[way], times[way]) for way in _CHAIN if way in times]
    items = [Bar(label, ms, f"{ms:,.0f} ms") for label, ms in found]
    plain = times[ladder.TEXT_TO_IMAGE]
    floors = [Bar("text to image without a reference", plain, f"{plain:,.0f} ms")]
    title = (
        "Time of a picture of a known subject on an H200, from top to bottom; pale is what was "
        "saved; dashed is text to image on the same runtime"
    )
    return as_file(waterfall(title, items, floors))


def pictures(folder: Path) -> str:
    """The rungs, for one picture."""
    rows, lines = _rows(folder), []
    for case in ("r1-b1", "r4-b1"):
        references = case.removeprefix("r").partition("-")[0]
        noun = "reference" if references == "1" else "references"
        heads = (f"{references} {noun}", "new subject", "known subject", "faster")
        lines += ["", f"| {' | '.join(heads)} |", "|---|---|---|---|"]
        lines += _ladder(rows, case)
    return "\n".join(lines[1:])


def host(folder: Path) -> str:
    """How much of a step is the device's, and what a picture of a larger batch takes."""
    rows = _rows(folder)
    found = {(row["section"], row["case"], row["way"]): row for row in rows}

    def step(name: str) -> tuple[float, float, int]:
        values = found["profile", "r1-b1", name]["values"]
        ms = found["picture", "r1-b1", name]["values"]["step_ms"]
        return float(values["busy_ms"]), float(ms), int(values["kernels"])

    (theirs_busy, theirs, kernels), (ours_busy, ours, _) = (
        step(name) for name in (ladder.PUBLISHED, _OURS_WARM)
    )
    batch = found["picture", "r1-b4", _OURS_WARM]["ms"] / 4
    return (
        f"In a step of the published way the GPU is busy for {theirs_busy:.1f} of {theirs:.1f} ms: "
        f"the host launches {kernels}\nkernels one by one, and a quicker host would make it "
        f"quicker. In a step of ours the GPU is busy for {ours_busy:.1f} of {ours:.1f} ms.\n"
        f"Four pictures of a known subject at once take {batch:.0f} ms each."
    )


def attention(folder: Path) -> str:
    """Attention of a step: the kernel, the published path and the best stock composition."""
    rows = _rows(folder)
    heads = ("attention of a step, ms", "ours", "published path", "best stock composition")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    stock = {way.name: way.label for way in attention_ways() if way.kind == "composition"}
    for case in dict.fromkeys(row["case"] for row in rows if row["section"] == "attention"):
        found = {
            row["way"]: row["ms"]
            for row in rows
            if (row["section"], row["case"]) == ("attention", case) and row["ms"] is not None
        }
        ours, published = found["fused"], found["published"]
        best = min((name for name in found if name in stock), key=lambda name: found[name])
        cells = (
            _case(case),
            f"{ours:.2f}",
            f"{published:.2f}, {published / ours:.2f}x",
            f"{found[best]:.2f}, {found[best] / ours:.2f}x: {stock[best]}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(folder: Path) -> str:
    """What was wanted, of what was measured."""
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    for target in _read(folder)["targets"]:
        if target["measured"] is None:
            continue
        measured = f"{target['measured']:.3g} {target['unit']}"
        lines.append(
            f"| {target['name']} | {target['wanted']} | {measured} | {target['verdict']} |"
        )
    return "\n".join(lines)


def _ladder(rows: Sequence[Mapping[str, Any]], case: str) -> Iterator[str]:
    times, labels = _times(rows, case), _labels(rows)
    published = times[ladder.PUBLISHED]
    for rung in ladder.LADDER:
        cold, warm = (ladder.way_name(rung, subject) for subject in ("cold", "warm"))
        known = times.get(warm)
        if known is None:
            continue
        label = labels[warm]
        new = times.get(cold)
        cells = (
            f"{new:.0f} ms" if new is not None else "",
            "" if cold == warm else f"{known:.0f} ms",
            f"{published / known:.2f}x",
        )
        yield f"| {label} | {' | '.join(cells)} |"
    plain = times[ladder.TEXT_TO_IMAGE]
    yield f"| text to image on our runtime, no reference | {plain:.0f} ms | | |"


def _times(rows: Sequence[Mapping[str, Any]], case: str) -> dict[str, float]:
    """Milliseconds of a picture by way, of those that were measured."""
    return {
        row["way"]: row["ms"]
        for row in rows
        if (row["section"], row["case"]) == ("picture", case) and row["ms"] is not None
    }


def _labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a rung is called; the table's columns tell the subjects apart."""
    return {
        row["way"]: ladder.without_subject(row["label"])
        for row in rows
        if row["section"] == "picture"
    }


def _case(name: str) -> str:
    """`512px-r1-b3` in words."""
    side, references, rows = name.split("-")
    count, number = int(references[1:]), int(rows[1:]) // 3
    noun = "reference" if count == 1 else "references"
    pictures = "" if number == 1 else f", {number} pictures"
    return f"{side.removesuffix('px')} px, {count} {noun}{pictures}"


def _read(folder: Path) -> Any:
    return json.loads((folder / MEASURED).read_text(encoding="utf-8"))


def _rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _read(folder)["rows"]
    return found
