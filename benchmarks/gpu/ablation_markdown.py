"""The ablation table in Markdown, made from the JSON file of a run.

Of a rehearsal it has the rows and no number: what ran and what did not is all that it can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootpig_rt.benchmarks.gpu import ladder
from bootpig_rt.benchmarks.gpu.attention_ways import attention_ways
from bootpig_rt.files.atomic import atomic_write_text

EMPTY = "-"

NO_GPU = (
    "**No GPU was at hand; rows are empty.** This file was made by "
    "`bootpig-rt bench-gpu --rehearse`, which ran every path on a CPU at toy size. Its times mean "
    "nothing and are not quoted. `ran` says that a way computed what it should, compared before "
    "any time was taken. Run `bootpig-rt bench-gpu --output FILE.json --markdown FILE.md` on a "
    "CUDA GPU to fill the table in."
)


def write_markdown(report: Path, path: Path) -> None:
    """Make the table from the JSON file of a run."""
    atomic_write_text(path, markdown_of(json.loads(report.read_text(encoding="utf-8"))))


def markdown_of(report: Mapping[str, Any]) -> str:
    """The tables of a report, as `Report.to_dict` gives it."""
    rehearsal = bool(report["is_rehearsal"])
    rows: list[dict[str, Any]] = report["rows"]
    lines = ["# From the published way to ours", ""]
    lines += [NO_GPU] if rehearsal else _measured_on(report)
    if not report["is_finished"]:
        lines += ["", "The run was interrupted; what it had measured is here."]
    cases = list(dict.fromkeys(row["case"] for row in rows if row["way"] == ladder.PUBLISHED))
    cases = [case for case in cases if any(_of(rows, "picture", case))]
    for case in cases:
        references, batch = case.removeprefix("r").split("-b")
        lines += ["", f"## {_count(references, 'reference')}, {_count(batch, 'picture')}", ""]
        lines += _ladder(rows, case, rehearsal)
    lines += ["", "## Attention of a step", "", *_attention(rows, rehearsal)]
    lines += ["", "## Targets on an H100", "", *_targets(report["targets"])]
    return "\n".join(lines) + "\n"


def _measured_on(report: Mapping[str, Any]) -> list[str]:
    device, versions = report["device"], report["versions"]
    shown = ", ".join(f"{name} {value}" for name, value in versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return [
        f"{device.get('name')} ({device.get('architecture')}), CUDA {device.get('cuda')}; {shown}; "
        f"commit {report['commit']}; {report['started']}.",
        f"Command: `{report['command']}`. {settings}. Medians, ms.",
    ]


def _ladder(rows: Sequence[Mapping[str, Any]], case: str, rehearsal: bool) -> list[str]:
    header = (
        "optimisation",
        "new subject",
        "known subject",
        "known, faster than published",
        "a step",
        "kernels a step",
        "peak GiB",
        "",
    )
    body = []
    published = _ms(rows, case, ladder.PUBLISHED)
    for rung in ladder.LADDER:
        cold = ladder.way_name(rung, "cold")
        warm = ladder.way_name(rung, "warm")
        found = _one(rows, "picture", case, warm) or _one(rows, "picture", case, cold)
        status = _status(
            [_one(rows, "picture", case, each) for each in dict.fromkeys((cold, warm))]
        )
        if found is None:
            continue
        best = _ms(rows, case, warm)
        faster = f"{published / best:.2f}x" if published and best else EMPTY
        profile = _one(rows, "profile", case, found["way"])
        numbers = [
            _shown(_ms(rows, case, cold)),
            EMPTY if cold == warm else _shown(best),
            EMPTY if cold == warm else faster,
            _shown(found["values"].get("step_ms")),
            _shown(profile["values"].get("kernels") if profile else None),
            _shown(_gib(found["values"].get("peak_bytes"))),
        ]
        # As the run called it: the rungs of later code may do more.
        label = ladder.without_subject(found["label"])
        body.append([label, *([EMPTY] * 6 if rehearsal else numbers), status])
    plain = _one(rows, "picture", case, ladder.TEXT_TO_IMAGE)
    if plain is not None:
        numbers = [
            EMPTY,
            EMPTY,
            EMPTY,
            _shown(plain["values"].get("step_ms")),
            EMPTY,
            _shown(_gib(plain["values"].get("peak_bytes"))),
        ]
        label = "plain text-to-image on our runtime"
        if not rehearsal and plain["ms"] is not None:
            label += f": {plain['ms']:.4g} ms"
        body.append([label, *([EMPTY] * 6 if rehearsal else numbers), _status([plain])])
    return _table(header, body)


def _attention(rows: Sequence[Mapping[str, Any]], rehearsal: bool) -> list[str]:
    """Ways by rows: the sums over 16 layers; ways that did not run say why."""
    sums = [row for row in rows if row["section"] == "attention"]
    cases = list(dict.fromkeys(row["case"] for row in sums))
    body = []
    for way in attention_ways():
        single = [r for r in rows if r["section"] == "kernel" and r["way"] == way.name]
        if not single:
            continue
        numbers = []
        for case in cases:
            found = _one(rows, "attention", case, way.name)
            numbers.append(EMPTY if rehearsal or found is None else _shown(found["ms"]))
        body.append([way.label, *numbers, _status(single)])
    headers = [EMPTY] * len(cases) if rehearsal else cases
    return _table(("way", *headers, ""), body)


def _targets(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    body = [
        [
            target["name"],
            target["wanted"],
            EMPTY if target["measured"] is None else f"{target['measured']:g} {target['unit']}",
            target["verdict"],
            "" if target["measured"] is None else target["remark"],
        ]
        for target in targets
    ]
    return _table(("target", "wanted", "measured", "", ""), body)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def _status(rows: Sequence[Mapping[str, Any] | None]) -> str:
    """`ran`, or why not; of several rows what went worst."""
    found = [row for row in rows if row is not None]
    bad = [row for row in found if row["status"] not in ("ok", "skipped")]
    if bad:
        return f"{bad[0]['status']}: {bad[0]['reason']}"
    ran = [row for row in found if row["status"] == "ok"]
    if not ran:
        return EMPTY
    return f"ran: {ran[0]['reason']}" if ran[0]["reason"] else "ran"


def _of(rows: Sequence[Mapping[str, Any]], section: str, case: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["section"] == section and row["case"] == case]


def _one(
    rows: Sequence[Mapping[str, Any]], section: str, case: str, way: str
) -> Mapping[str, Any] | None:
    return next((row for row in _of(rows, section, case) if row["way"] == way), None)


def _ms(rows: Sequence[Mapping[str, Any]], case: str, way: str) -> float | None:
    found = _one(rows, "picture", case, way)
    return found["ms"] if found is not None and found["status"] == "ok" else None


def _gib(found: float | None) -> float | None:
    return None if found is None else found / 2**30


def _shown(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.4g}"


def _count(number: str, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == "1" else "s")
