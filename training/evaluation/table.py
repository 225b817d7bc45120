"""The report for people: a table, and sheets of pictures with the verdicts under them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootpig_rt.images.png import save_png
from bootpig_rt.training.evaluation.counting import (
    MAIN_JUDGE,
    Verdicts,
    identity_hits,
    scene_hits,
)
from bootpig_rt.training.evaluation.evaluate import Evaluation
from bootpig_rt.training.evaluation.sheets import Tile, sheet
from bootpig_rt.training.evaluation.suite import EvalSubject, SuiteConfig, reference_pictures

ROWS_PER_SHEET = 10
_FIDELITY = {"psnr_db": "PSNR (dB)", "perceptual": "perceptual distance"}


def text_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    judges = [name for name in report["judges"] if name != "scene"]
    widths = [32, 8, *([22] * len(judges)), 22]

    def line(*cells: str) -> str:
        return "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=False)).rstrip()

    def row(name: str, part: dict[str, Any]) -> str:
        chance = "-" if part["chance"] is None else f"{part['chance']:.3f}"
        cells = [_cell(part["identity"][judge]) for judge in judges]
        return line(name, chance, *cells, _cell(part["scene"]))

    controls, groups = report["controls"], report["groups"]
    wrong = controls["wrong_reference"]
    given = wrong | {"identity": wrong["identity_of_the_given_reference"]}
    combinations = report["held_out_combinations"]
    head = line("", "chance", *[f"identity: {judge}" for judge in judges], "scene")
    lines = [
        f"suite {report['suite']['name']}; the main judge of identity is {report['main_judge']!r}; "
        "rates with 95 % intervals over subjects",
        "",
        head,
        row("held-out identities", groups["identities"]),
        row("held-out concepts", groups["concepts"]),
        row("held-out combinations", combinations["held_out"]),
        row("  other prompts, same subjects", combinations["other_prompts_of_the_same_subjects"]),
        "",
        "controls",
        row("own reference, same prompts", controls["same_prompts_own_reference"]),
        row("wrong reference: own identity", wrong),
        row("wrong reference: the given one", given),
        row("no reference", controls["no_reference"]),
        *(
            line(
                name,
                "",
                *[_cell(report["judges"][judge][key]) for judge in judges],
                _cell(report["judges"]["scene"][key]),
            )
            for name, key in (
                ("renderer's own pictures", "renderer"),
                ("renderer's, blurred", "renderer_blurred"),
            )
        ),
        "",
        "number of references (held-out identities, same prompts and noise)",
        *(row(f"  {count}", part) for count, part in report["references"].items()),
        "",
    ]
    copying = controls["copy_paste"]
    for group, part in groups.items():
        ratios = [
            f"{part['times_chance'][j]:.2f}" if part["times_chance"][j] else "-" for j in judges
        ]
        lines.append(line(f"times chance: {group}", "", *ratios))
        both = _cell(part["identity_and_scene"])
        lines.append(line("  identity and scene both right", "", both))
    lines += ["", "copy-paste: score of the given view; gap to a view that was not given"]
    for name, about in (("pair", "pair"), ("renderer", "renderer"), ("paste", "real pastes")):
        part = copying[name]
        lines.append(line(f"  {about}", "", _cell(part["score"]), _cell(part["gap"])))
    lines += ["", "fidelity to the subject's own drawing", line("", "", *_FIDELITY.values())]
    for name, part in _fidelity_rows(report).items():
        lines.append(line(f"  {name}", "", *[_cell(part.get(key)) for key in _FIDELITY]))
    lines.append(f"scene judge on fresh renders: {report['judges']['scene']['fresh_renders']:.3f}")
    return "\n".join(lines)


def _fidelity_rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups, arms = report["groups"], report["fidelity"]
    rows = {f"held-out {group}": part["fidelity"] for group, part in groups.items()}
    return rows | {arm.replace("_", " "): part for arm, part in arms.items() if arm != "main"}


def _cell(part: dict[str, Any] | None) -> str:
    return "-" if part is None else f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def save_sheets(
    evaluation: Evaluation, subjects: Sequence[EvalSubject], config: SuiteConfig, folder: Path
) -> list[Path]:
    """Write sheets of all subjects (first seed) and of the controls.

    The words under a picture are the scene asked for; green if identity and scene are right, red if
    one is wrong.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for group in ("identities", "concepts"):
        numbers = [n for n, subject in enumerate(subjects) if subject.group == group]
        for start in range(0, len(numbers), ROWS_PER_SHEET):
            part = numbers[start : start + ROWS_PER_SHEET]
            name = f"{group}-{start // ROWS_PER_SHEET + 1}.png"
            rows = [_row(evaluation.arms["main"], subjects, n, config) for n in part]
            paths.append(_save(rows, folder / name))
    chosen = [n for n, subject in enumerate(subjects) if subject.group == "identities"]
    chosen = chosen[:ROWS_PER_SHEET]
    for arm in ("wrong_reference", "no_reference", "renderer", "renderer_blurred"):
        rows = [_row(evaluation.arms[arm], subjects, n, config) for n in chosen]
        paths.append(_save(rows, folder / f"control-{arm}.png"))
    return paths


def _save(rows: list[list[Tile]], path: Path) -> Path:
    save_png(sheet(rows), path, {})
    return path


def _row(
    verdicts: Verdicts, subjects: Sequence[EvalSubject], number: int, config: SuiteConfig
) -> list[Tile]:
    subject = subjects[number]
    hits, scenes = identity_hits(verdicts, subjects, MAIN_JUDGE), scene_hits(verdicts, subjects)
    mine = [n for n, s in enumerate(verdicts.shots) if s.subject == number and s.seed == 0]
    is_wrong = any(verdicts.shots[n].arm == "wrong" for n in mine)
    which = subject.wrong if is_wrong else subject.own
    reference = reference_pictures(subject, which, 1, config.seed)[0]
    tiles = [Tile(reference, f"{subject.noun}, {subject.styles[which]}")]
    for n in mine:
        prompt = subject.prompts[verdicts.shots[n].prompt]
        words = f"{prompt.position}, {prompt.scene}" + " *" * prompt.is_held_out
        tiles.append(Tile(verdicts.pictures[n], words, hits[n] and scenes[n]))
    return tiles
