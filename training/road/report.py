"""What the road ends with: a page of what was done, and a folder that a model card is made of."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import grid
from bootpig_rt.training.model_card import CARD_FILE, FACTS_FILE
from bootpig_rt.training.provenance import FILE as PROVENANCE_FILE
from bootpig_rt.training.road.compare import table
from bootpig_rt.training.road.steps import PROMPT, Places
from bootpig_rt.training.shards import read_manifest, read_samples

PAGE = "report.html"
CARD = "card"
_SAMPLES = 8
_STYLE = """body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .3rem .6rem }
th { text-align: left } code { font-size: 12px; word-break: break-all }
img { image-rendering: pixelated; max-width: 100% } .small { width: 192px }"""


def write_report(output: Path, done: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `report.html` and the folder `card` of a road that was driven to its end.

    Args:
        output: The road's.
        done: What `drive` returned.

    Returns:
        The page.

    Raises:
        StorageError: A file cannot be written.
    """
    at = Places(output)
    comparison = json.loads((output / "comparison" / "report.json").read_text(encoding="utf-8"))
    _write_card(output, at, comparison)
    manifest = read_manifest(at.shards)
    _save_samples(at.shards, output / CARD / "samples.png")
    total = sum(step["seconds"] for step in done.values())
    steps = [("step", "what", "command", "s")]
    steps += [
        (name, step["about"], step.get("command", ""), f"{step['seconds']:.0f}")
        for name, step in done.items()
    ]
    rejects = sorted(manifest.get("rejects", {}).items())
    rejected = ", ".join(f"{name} {count}" for name, count in rejects) or "none"
    parts = [
        "<h1>From a Stable Diffusion folder to a picture over HTTP</h1>",
        f"<p>{len(done)} steps in {total:.0f} s on {os.cpu_count()} CPUs. Commands ran on each "
        "other's outputs without an edit.</p>",
        _picture(f"{CARD}/picture.png", f"Over HTTP: {PROMPT}", "small"),
        _table(steps),
        "<h2>What the bootstrap made</h2>",
        f"<p>{manifest['samples']} samples; rejected: {html.escape(rejected)}. Below: references "
        "above, targets below.</p>",
        _picture(f"{CARD}/samples.png", "references and targets"),
        "<h2>Does the trained pair personalise better than its start?</h2>",
        f"<p>{len(comparison['subjects'])} held-out subjects ({comparison['drawings']}), both "
        "pairs with the same prompts, references and noise; means over subjects with 95 % "
        f"intervals. Chance of identity is {comparison['chance']:.2f}.</p>",
        _table(table(comparison)),
        _picture(f"{CARD}/compare.png", "reference, start, trained, wrong reference"),
        f'<p>The <a href="{CARD}/{CARD_FILE}">model card</a> and what it is made of lie in '
        f"<code>{CARD}/</code>.</p>",
    ]
    body = "\n".join(parts)
    page = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>The road</title>\n'
        f"<style>{_STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )
    atomic_write_text(output / PAGE, page)
    return output / PAGE


def _write_card(output: Path, at: Places, comparison: Mapping[str, Any]) -> None:
    folder = output / CARD
    folder.mkdir(exist_ok=True)
    for name in (CARD_FILE, FACTS_FILE, PROVENANCE_FILE, "pair.json"):
        if (at.pair / name).is_file():
            shutil.copy(at.pair / name, folder / name)
    shutil.copy(at.evaluation / "report.json", folder / "evaluation.json")
    shutil.copytree(at.evaluation / "sheets", folder / "sheets", dirs_exist_ok=True)
    shutil.copy(output / "comparison" / "compare.png", folder / "compare.png")
    shutil.copy(at.picture, folder / "picture.png")
    atomic_write_text(folder / "comparison.json", json.dumps(comparison, indent=1) + "\n")


def _save_samples(shards: Path, path: Path) -> None:
    """The first samples: a row of references above a row of targets."""
    found = []
    for sample in read_samples(shards):
        found.append(sample)
        if len(found) == _SAMPLES:
            break
    references = [Image.fromarray(sample.references[0]) for sample in found]
    targets = [Image.fromarray(sample.target) for sample in found]
    sheet = grid([*references, *targets], len(found), gap_px=2)
    twice = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)
    save_png(twice, path)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        cell = "th" if number == 0 else "td"
        cells = "".join(f"<{cell}>{_cell(text)}</{cell}>" for text in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(text: str) -> str:
    escaped = html.escape(text)
    return f"<code>{escaped}</code>" if text.startswith("bootpig-rt ") else escaped


def _picture(path: str, words: str, kind: str = "") -> str:
    return f'<p><img src="{path}" alt="{html.escape(words)}" class="{kind}"></p>'
