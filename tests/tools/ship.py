"""Puts a trained pair and its student into the package, in place of those that are there.

make ship PAIR=runs/recipe-128/pair/result STUDENT=runs/recipe-128/distill/result

Makes what ships: graphs for a CPU beside float16 weights, compared with torch; of the student what
differs alone; the model card; logs and settings of all stages in training/logs. The curve of
another pair is removed. Nothing in the package changes before all is done and small enough.
Interrupted, the same command goes on where it was. With CARD=1 the card alone is written anew, with
what `evaluate --model PAIR` has measured since.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from string import Template
from typing import Any

from bootpig_rt.bundle.bundle import is_bundle, open_bundle
from bootpig_rt.bundle.files import MANIFEST
from bootpig_rt.bundle.pair_config import read_json, read_pair_config
from bootpig_rt.cli.build_engine import build_progress
from bootpig_rt.curve import curve_path, load_curve
from bootpig_rt.errors import BootPIGError, CheckpointError, StorageError
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options, size_multiple_px
from bootpig_rt.export.student import DIFFERENCE, build_student, difference_of
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.files.held import held
from bootpig_rt.training.model_card import CARD_FILE, read_facts, score_tables, training_table
from bootpig_rt.training.provenance import FILE as PROVENANCE_FILE
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.start import subject_share
from bootpig_rt.training.world3d.catalogue import load_catalogue
from bootpig_rt.training.world3d.scenes import HELD_OUT_SCENES

ROOT = Path(__file__).resolve().parents[2]
MB = 1e6
MOST_MB = 42.0
"""Of pair and student in the package."""

CARD = Path(__file__).with_name("shipped_card.md")
MODEL_FOLDERS = ("base_unet", "ref_unet", "vae", "tiny_vae", "text_encoder", "tokenizer")
_AUTOENCODERS = {"PatchAutoencoder": "an autoencoder of our own", "AutoencoderKL": "a VAE"}


@dataclass(frozen=True)
class Order:
    """What is put where.

    Attributes:
        pair, student: Results of stages `pair` and `distill`.
        name: Of the pair; the student's is that with `-turbo`.
        assets: Folder of the package that holds `pair` and `student`.
        logs: Folder for the logs of the training.
        most_mb: Pair and student may take so many million bytes.
        settings: What the pair's `pair.json` is to say otherwise than the stage wrote.
    """

    pair: Path
    student: Path
    name: str = "bootpig-small"
    assets: Path = ROOT / "bootpig_rt" / "assets"
    logs: Path = ROOT / "training" / "logs"
    most_mb: float = MOST_MB
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Everything is made here, on the same disk as the package."""
        return self.assets / ".ship"


def ship(order: Order) -> list[str]:
    """Make all of it, then put it in place.

    Returns:
        What was done, in lines.

    Raises:
        CheckpointError: A folder is no result of a stage, or they do not belong together.
        ParityError: The graphs differ from torch.
        StorageError: It is too large, or cannot be written.
    """
    for folder in (order.pair, order.student):
        if not (folder / "pair.json").is_file() or is_bundle(folder):
            raise CheckpointError(
                f"{folder} is not what a stage of training wrote, expected its folder result/",
                folder,
            )
    with held(order.work, "pair to ship"):
        source = order.work / "source"
        _copy_source(order, source)
        pair, student = order.work / "pair", order.work / "student-whole"
        if not _is_built_from(pair, source):
            _build(source, pair)
        shutil.copy(source / CARD_FILE, pair / CARD_FILE)
        shutil.rmtree(student, ignore_errors=True)
        difference_of(student).unlink(missing_ok=True)
        config = read_pair_config(pair / "pair.json")
        settings = {"name": f"{order.name}-turbo", "subject_share": config.subject_share}
        build_student(pair, order.student, student, settings=settings)
        kept = order.work / "student"
        _keep_difference(student, kept)
        lines = _sizes(pair, kept, order)
        _put(pair, order.assets / "pair", order.work / "old-pair")
        _put(kept, order.assets / "student", order.work / "old-student")
        lines += _drop_curve(order.assets / "pair")
        lines += _write_logs(order)
        shutil.rmtree(order.work, ignore_errors=True)
    return lines


def _copy_source(order: Order, source: Path) -> None:
    """The pair under the name that ships, with its card."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in (*MODEL_FOLDERS, "scheduler"):
        if (order.pair / name).is_dir():
            shutil.copytree(order.pair / name, source / name)
    shutil.copy(order.pair / "model_index.json", source / "model_index.json")
    config = read_pair_config(order.pair / "pair.json")
    known = {"name": order.name, "subject_share": _share(order.pair)}
    config = replace(config, **{**known, **order.settings})
    (source / "pair.json").write_text(config.to_json(), encoding="utf-8")
    (source / CARD_FILE).write_text(card(order), encoding="utf-8")


def _share(pair: Path) -> float:
    """How large the samples of a pair showed subjects in references."""
    return subject_share(_record(pair).get("data") or {})


def _record(pair: Path) -> dict[str, Any]:
    path = pair / PROVENANCE_FILE
    return read_json(path) if path.is_file() else {}


def _is_built_from(bundle: Path, source: Path) -> bool:
    """Whether an earlier call has built it of the same files."""
    if not is_bundle(bundle):
        return False
    files = (path for path in source.rglob("*") if path.is_file() and path.name != CARD_FILE)
    for path in files:
        built = bundle / path.relative_to(source)
        if not built.is_file() or built.read_bytes() != path.read_bytes():
            shutil.rmtree(bundle)
            return False
    return True


def _build(source: Path, output: Path) -> None:
    config = read_pair_config(source / "pair.json")
    multiple = size_multiple_px(source, source)
    options = build_options(config, size_multiple_px=multiple, target="cpu", weights="float16")
    with build_progress(is_shown=True) as progress:
        build_engine(source, output, options, progress=progress)


def _keep_difference(whole: Path, kept: Path) -> None:
    """Of the student's bundle what `few_step_model` cannot take from the pair's."""
    shutil.rmtree(kept, ignore_errors=True)
    (kept / DIFFERENCE).parent.mkdir(parents=True)
    for name in ("pair.json", MANIFEST):
        shutil.copy(whole / name, kept / name)
    shutil.copy(difference_of(whole), kept / DIFFERENCE)


def _sizes(pair: Path, student: Path, order: Order) -> list[str]:
    sizes = [
        sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) / MB
        for part in (
            pair,
            student,
        )
    ]
    if sum(sizes) > order.most_mb:
        raise StorageError(
            f"pair and student take {sum(sizes):.1f} MB ({sizes[0]:.1f} and {sizes[1]:.1f}), "
            f"expected at most {order.most_mb:g}; train smaller ones, or raise --most-mb"
        )
    return [
        f"pair {sizes[0]:.2f} MB, student {sizes[1]:.2f} MB, together {sum(sizes):.2f} MB of "
        f"{order.most_mb:g}"
    ]


def _put(new: Path, place: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)


def _drop_curve(pair: Path) -> list[str]:
    """Remove the curve that lies beside the pair, if it is another's."""
    path = curve_path(pair)
    if not path.is_file():
        return []
    if load_curve(path).fingerprint == open_bundle(pair).manifest.pair.fingerprint:
        return [f"{path.name} is of this pair and stays"]
    path.unlink()
    return [f"{path.name} was of another pair and is gone; measure one: bootpig-rt tune --measure"]


def _write_logs(order: Order) -> list[str]:
    """Logs and settings of every stage that is there, in place of those of the last pair."""
    runs = dict(_runs(order))
    found = {stage: run for stage, run in runs.items() if (run / "log.jsonl").is_file()}
    if not found:
        return ["no log of a stage was found; training/logs stays as it is"]
    shutil.rmtree(order.logs, ignore_errors=True)
    order.logs.mkdir(parents=True)
    for stage, run in found.items():
        shutil.copy(run / "log.jsonl", order.logs / f"{stage}.jsonl")
        settings = _without_places(read_json(run / "config.json"))
        atomic_write_text(
            order.logs / f"{stage}_config.json", json.dumps(settings, indent=1) + "\n"
        )
    atomic_write_text(order.logs / PROVENANCE_FILE, json.dumps(_shipped(order), indent=1) + "\n")
    missing = [stage for stage in runs if stage not in found]
    return [f"logs of {', '.join(found)}" + f"; not found: {', '.join(missing)}" * bool(missing)]


def _shipped(order: Order) -> dict[str, Any]:
    """The record of the pair, with what was changed when it was put into the package."""
    trained = read_pair_config(order.pair / "pair.json")
    shipped = read_pair_config(order.assets / "pair" / "pair.json")
    changed = {
        field.name: getattr(shipped, field.name)
        for field in fields(shipped)
        if getattr(shipped, field.name) != getattr(trained, field.name)
    }
    manifest = open_bundle(order.assets / "pair").manifest
    about = {"fingerprint": manifest.pair.fingerprint, "set_by_hand": changed}
    record: dict[str, Any] = _without_places(_record(order.pair))
    student: dict[str, Any] = _without_places(_record(order.student))
    told = {name: value for name, value in student.items() if name != "start"}
    return {**record, "shipped": about, "student": told}


def _runs(order: Order) -> Iterator[tuple[str, Path]]:
    """The folder of each stage's run, from its last stage back to its first."""
    yield "student", order.student.parent
    yield "pair", order.pair.parent
    record: Mapping[str, Any] | None = _record(order.pair)
    while record:
        yield from _grown(record)
        start = record.get("start") or {}
        record = start.get("provenance")
        if record:
            yield record["config"]["stage"], _found(start["folder"], order).parent


def _grown(record: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The smaller pair that a base began as, and its autoencoder."""
    grown = record.get("grown_from")
    if grown and grown.get("provenance"):
        yield "small_base", Path(grown["folder"]).parent
        start = grown["provenance"].get("start") or {}
        if start.get("folder"):
            yield "small_vae", Path(start["folder"]).parent


def _found(folder: str, order: Order) -> Path:
    """A run's result, where the command was run or beside the pair's own run."""
    path = Path(folder)
    beside = order.pair.parents[1] / path.parent.name / path.name
    return path if path.is_dir() else beside


def _without_places(values: Any) -> Any:
    """The same without the places on the disk of who trained: the last two names of a path stay."""
    if isinstance(values, dict):
        return {name: _without_places(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_without_places(value) for value in values]
    if isinstance(values, str) and values.startswith("/"):
        return "/".join(PurePath(values).parts[-2:])
    return values


# The card ----------------------------------------------------------------------------------------


def card(order: Order) -> str:
    """The text of the shipped pair's model card."""
    folder, record = order.pair, _record(order.pair)
    config = read_pair_config(folder / "pair.json")
    unet, vae = (read_json(folder / part / "config.json") for part in ("base_unet", "vae"))
    text = read_json(folder / "text_encoder" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return Template(CARD.read_text(encoding="utf-8")).substitute(
        size_px=config.sample_size_px,
        unet_m=_parameters_m(folder / "base_unet"),
        vae_m=_parameters_m(folder / "vae"),
        channels=", ".join(map(str, unet["block_out_channels"])),
        autoencoder=_AUTOENCODERS.get(vae["_class_name"], f"an {vae['_class_name']}"),
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        latent_channels=vae["latent_channels"],
        text_layers=text["num_hidden_layers"],
        text_width=text["hidden_size"],
        text_words=text["vocab_size"],
        prediction=scheduler["prediction_type"],
        reference_timestep=config.reference_timestep,
        training=training_table(record),
        data=_data_text(record),
        photographs=(
            "Photographs are behind the subjects where a scene is a panorama, and nowhere else."
            if _has_panoramas(record)
            else "No photographs."
        ),
        panoramas="| panoramas | Poly Haven | CC0-1.0 |\n" * _has_panoramas(record),
        held_out=_held_out_text(),
        scores=score_tables(scores) if (scores := read_facts(folder).get("scores")) else "",
        student_steps=read_pair_config(order.student / "pair.json").default_steps,
        student_training=_student_text(_record(order.student)),
    )


def _parameters_m(module: Path) -> str:
    size = sum(path.stat().st_size for path in module.glob("*.safetensors"))
    return f"{size / 2 / MB:.1f}"  # float16; a header is a thousandth of it


def _data_text(record: Mapping[str, Any]) -> str:
    data = record.get("data") or {}
    settings = data.get("settings") or {}
    world, subjects = settings.get("world") or {}, settings.get("subjects") or {}
    count = data.get("samples", "No known number of")
    if "drawing_share" not in world:
        return f"{count} samples made by `bootpig-rt synthesize`."
    scenes = ", ".join(
        f"{share:.0%} {name}"
        for name, share in zip(
            ("drawn", "rendered grounds", "panoramas"), _shares(world["scenes"]), strict=True
        )
        if share
    )
    return (
        f"{count} samples made by `bootpig-rt synthesize --world 3d`: {subjects['models']} openly "
        f"licensed models, in true views, and {subjects['drawings']} drawings of six emoji sets, "
        f"which are {world['drawing_share']:.0%} of the subjects; scenes are {scenes}."
    )


def _has_panoramas(record: Mapping[str, Any]) -> bool:
    world = ((record.get("data") or {}).get("settings") or {}).get("world") or {}
    return bool((world.get("scenes") or {}).get("panorama"))


def _shares(scenes: Mapping[str, float]) -> list[float]:
    weights = [scenes[kind] for kind in ("drawn", "ground", "panorama")]
    return [weight / sum(weights) for weight in weights]


def _held_out_text() -> str:
    splits = load_splits()
    models = load_catalogue()
    identities = sum(model.split == "held_out_identity" for model in models)
    nouns = {model.noun for model in models if model.split == "held_out_concept"}
    return (
        f"{identities} models and {len(splits.identities)} drawings of known classes, "
        f"{len(nouns)} classes of models and {len(splits.concepts)} of drawings as a whole, one "
        f"scene for each class, and {len(HELD_OUT_SCENES)} scenes"
    )


def _student_text(record: Mapping[str, Any]) -> str:
    if not record:
        return "distilled by stage `distill`"
    config = record["config"]
    samples = config["batch_size"] * config["accumulate"] * record.get("processes", 1)
    return f"{config['steps']} steps of {samples} pictures in stage `distill`"


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, required=True, help="result of stage pair")
    parser.add_argument("--student", type=Path, required=True, help="result of stage distill")
    parser.add_argument("--name", default=Order.name, help=f"default: {Order.name}")
    parser.add_argument("--assets", type=Path, default=Order.assets, help="folder in the package")
    parser.add_argument("--logs", type=Path, default=Order.logs, help="for logs of the training")
    parser.add_argument("--most-mb", type=float, default=MOST_MB, help=f"default: {MOST_MB:g}")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE", dest="settings",
        help="of pair.json, as in image_guidance_scale=3",
    )  # fmt: skip
    parser.add_argument(
        "--card", action="store_true", help="write the model card anew, as after an evaluation"
    )
    args = vars(parser.parse_args())
    is_card = args.pop("card")
    args["settings"] = dict(map(_setting, args["settings"]))
    try:
        order = Order(**args)
        if is_card:
            atomic_write_text(order.assets / "pair" / CARD_FILE, card(order))
        lines = [str(order.assets / "pair" / CARD_FILE)] if is_card else ship(order)
    except BootPIGError as error:
        sys.stderr.write(f"ship: error: {error}\n")
        return error.exit_code
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
