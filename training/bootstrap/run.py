"""From a configuration to shards: the entry that `bootpig-rt bootstrap` calls.

Stages run one after the other over all items, so that one model is loaded at a time, and what each
made is kept: a changed threshold of the filters draws nothing again. A stage's folder is named by
all that decides what is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.bootstrap import captions as asking
from bootpig_rt.training.bootstrap import filters, masks, pictures, triplets
from bootpig_rt.training.bootstrap.ask import make_captions
from bootpig_rt.training.bootstrap.assemble import assemble
from bootpig_rt.training.bootstrap.config import BootstrapConfig, settings_of
from bootpig_rt.training.bootstrap.parts import read_items
from bootpig_rt.training.bootstrap.sheets import write_sheets
from bootpig_rt.training.bootstrap.sources import Sources, check_sources, describe_sources
from bootpig_rt.training.bootstrap.stage import Item, MakeStage, Runner, run_here
from bootpig_rt.training.bootstrap.work import Work
from bootpig_rt.training.folder_claim import only_writer

FORMAT = 1


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run: its name, the folder of its parts, and how it is built."""

    name: str
    folder: Path
    make: MakeStage


def plan_stages(config: BootstrapConfig, sources: Sources) -> list[StagePlan]:
    """The stages after captions, and captions first, each with the folder that its settings name.

    A folder's name holds a digest of the settings of its stage and of those before, with the
    content of the models' folders: another model in an old folder is another stage.
    """
    settings = settings_of(config, sources.identify)
    table = {
        name: settings.pop(name) for name in list(settings) if isinstance(settings[name], dict)
    }
    pairs, checks = table["pairs"], table["filters"]
    verify = {name: pairs.pop(name) for name in ("encoder", "floor", "ceiling")}
    duplicates = {"duplicates": checks.pop("duplicates")}
    checks.pop("max_similarity")  # what is read where shards are put together
    table["captions"].pop("count")  # more captions begin with the same ones
    common = {name: settings[name] for name in ("size_px", "dtype")}
    deciding: list[tuple[str, MakeStage, Any]] = [
        (asking.NAME, partial(make_captions, config), [settings["seed"], table["captions"]]),
        (
            pictures.NAME,
            partial(pictures.make_pictures, config),
            [common, config.part_size, table["pictures"], pairs],
        ),
        (masks.NAME, partial(masks.MasksStage, config), table["masks"]),
        (filters.NAME, partial(filters.FiltersStage, config), checks),
        (
            triplets.NAME,
            partial(triplets.TripletsStage, config),
            [table["triplets"], verify, duplicates],
        ),
    ]
    digest, plans = str(FORMAT), []
    for number, (name, make, decides) in enumerate(deciding, start=1):
        text = json.dumps([digest, decides], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        plans.append(StagePlan(name, config.work_folder / f"{number}-{name}-{digest[:10]}", make))
    return plans


def bootstrap(config: BootstrapConfig, *, runner: Runner = run_here) -> dict[str, Any]:
    """Make all samples, or go on where a run with the same settings stopped.

    Args:
        config: What to make.
        runner: Who puts items through the stages: this process, or many machines.

    Returns:
        `samples`, `captions`, `pictures`, `rejects` by stage and reason, `shards`, `folder`,
        `sheets`.

    Raises:
        ConfigError: The output holds samples of other settings.
        InputError: Every item was rejected, or captions cannot be used.
        CheckpointError: A model's folder is missing, unsafe, not whole or of another kind.
        EndpointError: The endpoint of captions refuses or fails.
        StorageError: Something cannot be written, or another run writes there; what is there is
            kept.
    """
    check_sources(config)
    with only_writer(config.output_folder), only_writer(config.work_folder):
        sources = Sources(config.work_folder / "sources.json")
        settings = settings_of(config, sources.identify)
        _check_output(config, settings)
        first, *plans = plan_stages(config, sources)
        captions, record = asking.ask_captions(config, first.folder, runner)
        records = {first.name: record}
        size = config.part_size
        items = list(asking.items_of(config, captions))
        sizes = {k: len(items[k * size : (k + 1) * size]) for k in range(-(-len(items) // size))}

        def read(number: int) -> list[Item]:
            return items[number * size : (number + 1) * size]

        reader: Callable[[int], Any] = read
        chain: list[Path] = []
        for plan in plans:
            work = Work(plan.folder, plan.make, runner, plan.name)
            work.run(sizes, reader)
            chain.append(plan.folder)
            records[plan.name] = work.totals()
            if not records[plan.name]["items"]:
                write_sheets(config.output_folder, plans[: len(chain)], sizes, [])
                raise InputError(_all_rejected(config, plan, records))
            sizes = {number: work.records[number]["items"] for number in sizes}
            reader = partial(read_items, list(chain))
        manifest = assemble(
            config,
            chain,
            sizes,
            settings=settings,
            rejects={
                f"{name}.{reason}": count
                for name, each in records.items()
                for reason, count in each["rejects"].items()
            },
            sources=describe_sources(config, sources),
        )
        sheets = write_sheets(config.output_folder, plans, sizes, chain)
        return {
            "samples": manifest["samples"],
            "captions": len(captions),
            "pictures": len(items),
            "rejects": manifest["rejects"],
            "shards": len(manifest["shards"]),
            "folder": str(config.output_folder),
            "sheets": [str(path) for path in sheets],
        }


def describe(config: BootstrapConfig) -> dict[str, Any]:
    """What a run would do: what is there already, from which sources; makes and loads nothing.

    Raises:
        ConfigError: The output holds samples of other settings.
        CheckpointError: A model's folder is missing, or lacks configuration or safetensors.
    """
    check_sources(config)
    sources = Sources(config.work_folder / "sources.json", keep=False)
    _check_output(config, settings_of(config, sources.identify))
    pictures_wanted = config.captions.count * config.pictures.per_caption
    parts = -(-pictures_wanted // config.part_size)
    stages = []
    for plan in plan_stages(config, sources):
        found = sum(1 for _ in plan.folder.glob("part-*.json"))
        stages.append({"name": plan.name, "folder": str(plan.folder), "parts_there": found})
    # A PNG of a drawn picture has about two bytes a pixel; it is in the work and in the shards,
    # and the reference is about a third of one.
    picture_bytes = 2 * config.size_px**2
    views = 1 + config.pairs.share
    return {
        "captions": config.captions.count,
        "pictures": pictures_wanted,
        "parts": parts,
        "disk_bytes_at_most": round(pictures_wanted * picture_bytes * (views + 2)),
        "stages": stages,
        "sources": describe_sources(config, sources),
        "config": config.to_dict(),
    }


def _check_output(config: BootstrapConfig, settings: dict[str, Any]) -> None:
    path = config.output_folder / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ConfigError(
            f"{config.output_folder} holds samples of other settings; choose another output, with "
            f"work={config.work_folder} so that what did not change is not made again"
        )


def _all_rejected(
    config: BootstrapConfig, plan: StagePlan, records: dict[str, dict[str, Any]]
) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in records[plan.name]["rejects"].items())
    return (
        f"stage {plan.name!r} rejected every item ({counts}); look at the pictures in "
        f"{config.output_folder / 'sheets'} and change [{plan.name}]"
    )
