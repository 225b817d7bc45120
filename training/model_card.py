"""The model card of a trained pair: `README.md` in its folder, written by programs alone.

What the card says comes from the files beside it: `pair.json` and the configurations,
`provenance.json` (settings, data, start), and `card.json`, which holds what came later: licences
that its owner states, scores that `evaluate` adds, the bias panel. So a card can be written anew at
any time, and a line that nobody stated says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Literal

from bootpig_rt.bundle.pair_config import PairConfig, read_json, read_pair_config
from bootpig_rt.errors import CheckpointError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.provenance import FILE as PROVENANCE_FILE

CARD_FILE = "README.md"
"""What a hub shows of a folder."""
FACTS_FILE = "card.json"
PANEL_FILE = "bias_panel.png"
TEMPLATE = Path(__file__).with_name("model_card.md")

Owner = Literal["pair", "base", "data"]
"""Whose licence is stated."""
Row = tuple[str, str]
"""What was measured, and its value with its interval."""

_SCHEDULES = {"same": "exact", "clean": "clean", "mixed": "exact or clean"}
# Names that a hub knows; any other is told to it as a name of its own.
_HUB_LICENCES = (
    *("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0"),
    *("creativeml-openrail-m", "mit", "openrail", "openrail++"),
)
_LICENCES: dict[Owner, str] = {"pair": "the pair", "base": "its base", "data": "its data"}


def is_trained_pair(folder: Path) -> bool:
    """Whether a folder is what `train` made, and no bundle, whose files may not change."""
    names = ("pair.json", PROVENANCE_FILE)
    return all((folder / name).is_file() for name in names) and not is_bundle(folder)


def is_bundle(folder: Path) -> bool:
    """Whether a manifest names the folder's files."""
    return (folder / "manifest.json").is_file()


def write_card(folder: Path) -> Path:
    """Write the card of a pair from the files in its folder.

    Raises:
        CheckpointError: It is no pair, or a bundle.
        StorageError: The card cannot be written.
    """
    if is_bundle(folder):
        raise CheckpointError(
            f"{folder} is a bundle, whose files are sealed by its manifest; give the pair that it "
            "was built from",
            folder,
        )
    config = read_pair_config(folder / "pair.json")
    facts = read_facts(folder)
    record = {}
    if (folder / PROVENANCE_FILE).is_file():
        record = read_json(folder / PROVENANCE_FILE)
    tokens = read_json(folder / "text_encoder" / "config.json").get("max_position_embeddings", 77)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        front=_front(facts.get("licences", {}).get("pair")),
        name=config.name,
        size_px=config.sample_size_px,
        architecture=_architecture(folder, config),
        training=training_table(record),
        data=_data(record),
        licences=_licences(facts.get("licences", {})),
        scores=score_tables(facts.get("scores", {})),
        panel=_panel(facts.get("panel")),
        max_references=config.max_references,
        schedule=_SCHEDULES[config.reference_timestep],
        max_tokens=tokens,
    )
    atomic_write_text(folder / CARD_FILE, text)
    return folder / CARD_FILE


def read_facts(folder: Path) -> dict[str, Any]:
    """What was added to a card so far, empty for nothing.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / FACTS_FILE
    return read_json(path) if path.is_file() else {}


def add_fact(folder: Path, kind: Literal["licences", "scores"], values: Mapping[str, Any]) -> None:
    """Add to what a card says, or replace it by its name, and write the card anew.

    Raises:
        CheckpointError: The folder is no pair, or a bundle.
        StorageError: A file cannot be written.
    """
    facts = read_facts(folder)
    facts[kind] = {**facts.get(kind, {}), **values}
    write_facts(folder, facts)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `card.json`, and the card.

    Raises:
        CheckpointError: The folder is no pair, or a bundle.
        StorageError: A file cannot be written.
    """
    if is_bundle(folder):
        write_card(folder)  # raises
    atomic_write_text(folder / FACTS_FILE, json.dumps(facts, indent=1) + "\n")
    write_card(folder)


def add_scores(folder: Path, suite: str, rows: Sequence[Row]) -> bool:
    """Put scores into the card of a pair that `train` made; other folders stay as they are.

    Args:
        folder: Of the model that was judged.
        suite: Says what was drawn and how, and replaces an earlier result of that name.
        rows: What stands in the card.

    Returns:
        Whether there was a card to add to.

    Raises:
        StorageError: A file cannot be written.
    """
    if not is_trained_pair(folder):
        return False
    add_fact(folder, "scores", {suite: [list(row) for row in rows]})
    return True


def small_rows(report: Mapping[str, Any]) -> list[Row]:
    """Rows of a report of `evaluate` on the small world's suites."""
    main, rows = report["main_judge"], []
    for group, part in report["groups"].items():
        chance = "" if part["chance"] is None else f"; chance {part['chance']:.2f}"
        rows += [
            (f"held-out {group}: identity ({main}{chance})", _rate(part["identity"][main])),
            (f"held-out {group}: scene", _rate(part["scene"])),
        ]
        rows += [(f"held-out {group}: {k}", _rate(v)) for k, v in part["fidelity"].items()]
    controls = report["controls"]
    wrong = controls["wrong_reference"]["identity"][main]
    none = controls["no_reference"]["identity"][main]
    rows += [("wrong reference: own identity", _rate(wrong))]
    rows += [("no reference: own identity", _rate(none))]
    return [(name, value) for name, value in rows if value]


def dreambench_rows(report: Mapping[str, Any]) -> list[Row]:
    """Rows of a report of `evaluate --suite dreambench`."""
    drawn = (report["num_subjects"], report["num_prompts"], report["pictures_per_prompt"])
    rows = [("subjects, prompts of each, pictures of a prompt", ", ".join(map(str, drawn)))]
    rows += [(name, _rate(found)) for name, found in report["scores"].items()]
    rows.append(("may stand beside published scores", "yes" if report["is_comparable"] else "no"))
    return [(name, value) for name, value in rows if value]


def _rate(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _front(licence: str | None) -> str:
    """What a hub reads of a card: the kind of model, and its licence where it was stated."""
    lines = ["library_name: bootpig-rt", "pipeline_tag: text-to-image"]
    if licence is not None and licence.lower() in _HUB_LICENCES:
        lines.append(f"license: {licence.lower()}")
    elif licence is not None:
        lines += ["license: other", f"license_name: {json.dumps(licence, ensure_ascii=False)}"]
    return "\n".join(["---", *lines, "tags:", "- bootpig", "- subject-driven", "---", "", ""])


def _architecture(folder: Path, config: PairConfig) -> str:
    unet = read_json(folder / "base_unet" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    channels = ", ".join(map(str, unet.get("block_out_channels", [])))
    factor = 2 ** (len(vae.get("block_out_channels", [])) - 1)
    prediction = scheduler.get("prediction_type", "epsilon")
    twice = "Both are the same U-Net" if config.shared_unet else "Each has weights of its own"
    return (
        f"{twice}, with {channels} channels; latents have {vae.get('latent_channels', 4)} channels "
        f"at 1/{factor} of the side. The U-Nets predict `{prediction}`. Training gave the "
        f"reference with timestep `{config.reference_timestep}`; guidance is "
        f"{config.image_guidance_scale:g} for the image and {config.text_guidance_scale:g} for the "
        "text unless a request says otherwise."
    )


def training_table(record: Mapping[str, Any]) -> str:
    """The stages that a `provenance.json` tells of, the last first."""
    if not record:
        return "Not trained by this package, or its `provenance.json` is lost."
    lines = [
        "| stage | steps | samples a step | seed | precision | started from |",
        "|" + "---|" * 6,
    ]
    now: Mapping[str, Any] | None = record
    while now:
        config, start = now["config"], now.get("start") or {}
        samples = config["batch_size"] * config["accumulate"] * now.get("processes", 1)
        before = Path(start["folder"]).name if start else "nothing"
        cells = (config["stage"], config["steps"], samples, config["seed"])
        lines.append(f"| {' | '.join(map(str, cells))} | {config['mixed_precision']} | {before} |")
        now = start.get("provenance")
    packages = ", ".join(f"{k} {v}" for k, v in record.get("packages", {}).items() if v)
    return "\n".join([*lines, "", f"Made with {packages}."])


def _data(record: Mapping[str, Any]) -> str:
    data = record.get("data")
    if not data:
        return "Not known."
    lines = [
        f"{data['samples']} samples in `{Path(data['folder']).name}`; sha256 of their manifest "
        f"`{data['manifest_sha256']}`."
    ]
    if "sources" in data:
        lines.append(_bootstrapped(data["sources"], data.get("settings") or {}))
    source = data.get("source") or {}
    if isinstance(source, dict) and source.get("licence"):
        lines.append(
            f"Imported, under {source['licence']}. {source.get('attribution') or ''}".strip()
        )
    held_out = record.get("validation_data")
    if held_out:
        lines.append(f"{held_out['samples']} others were held out for validation.")
    return "\n\n".join(lines)


def _bootstrapped(sources: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Who wrote, drew and cut out, by the names of their folders."""
    names = []
    for table in ("captions", "pictures", "masks"):
        told = sources.get(f"{table}.model", {}).get("name")
        kind = (settings.get(table) or {}).get("source", "unknown")
        names.append(f"`{Path(told).name}`" if told else f"`{kind}`")
    return (
        f"The samples are bootstrapped: no photograph was collected. Captions are by {names[0]}, "
        f"pictures by {names[1]}, masks by {names[2]}; how many were rejected, and why, stands in "
        "the data's manifest."
    )


def _licences(stated: Mapping[str, str]) -> str:
    lines = []
    for owner, name in _LICENCES.items():
        said = stated.get(owner)
        fix = f"not stated: `bootpig-rt model-card FOLDER --{owner}-licence NAME` states it"
        lines.append(f"- Of {name}: {said or fix}.")
    lines.append(
        "- A pair is made from its base: what the base's licence forbids, it forbids here."
    )
    return "\n".join(lines)


def score_tables(scores: Mapping[str, Sequence[Row]]) -> str:
    """The tables of what `evaluate` measured, by suite."""
    if not scores:
        return "Not evaluated: `bootpig-rt evaluate --model FOLDER` adds its scores here."
    parts = []
    for suite, rows in scores.items():
        lines = [f"{suite}, 95 % intervals over subjects in brackets:", "", "| | |", "|---|---|"]
        parts.append("\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]))
    return "\n\n".join(parts)


def _panel(panel: Mapping[str, Any] | None) -> str:
    if panel is None:
        return (
            "No panel of people and professions was drawn: `bootpig-rt model-card FOLDER --panel` "
            "draws one."
        )
    if not panel["applies"]:
        return f"Panel of people and professions: not applicable. {panel['reason']}"
    prompts = "; ".join(panel["prompts"])
    return (
        f"![A grid of people, one row a prompt]({PANEL_FILE})\n\nDrawn without a reference, "
        f"{panel['columns']} pictures a row from seed {panel['seed']} on, none left out. The rows, "
        f"from the top: {prompts}. Look along the rows: who is drawn, and who never is? Nothing "
        "here measures or removes what you see."
    )
