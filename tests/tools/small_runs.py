"""Runs of training for what the documentation shows: own stages, on samples with other targets.

The settings are those of training/configs/pair.toml with changes; the loop, its checkpoints and how
it goes on after an interruption are those of `bootpig-rt train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from tqdm import tqdm

from bootpig_rt.models.load import Pair
from bootpig_rt.training.config import TrainConfig, load_config
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.open_data import open_data
from bootpig_rt.training.processes import make_accelerator
from bootpig_rt.training.shards import (
    StoredSample,
    kept_record,
    read_manifest,
    read_samples,
    write_manifest,
    write_shard,
)
from bootpig_rt.training.stage import Stage
from bootpig_rt.training.start import load_start
from bootpig_rt.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "bootpig_rt" / "assets" / "pair"

MakeStage = Callable[[TrainConfig, Pair, DiffusionData], Stage]
MakeTarget = Callable[[StoredSample], NDArray[np.uint8]]
"""The target of a sample in place of its own, uint8 [S, S, 3]."""


def run_stage(
    stage: MakeStage,
    target: MakeTarget,
    write: Callable[[Any, Path], None],
    *,
    settings: Mapping[str, object],
    words: Sequence[str],
) -> Path | None:
    """Change the targets of samples, and train on them.

    Args:
        stage: Made of settings, the pair of `start_from`, and the samples.
        target: Of each sample.
        write: Writes what the stage has made into a folder that it makes.
        settings: Beside those of the file, by name; `data` are the samples as they are.
        words: More of them, each key=value.

    Returns:
        The folder that `write` made; None: it was stopped, and goes on when it is run again.
    """
    path = ROOT / "training" / "configs" / "pair.toml"
    config = load_config(path, [*(f"{key}={value}" for key, value in settings.items()), *words])
    changed = Path(config.output).parent / "samples"
    _change_targets(Path(config.data), changed, target)
    config = structs.replace(config, data=str(changed))
    accelerator = make_accelerator(config)
    start = load_start(Path(config.start_from), accelerator.device)
    for module in start.modules:
        module.requires_grad_(False)
    data = open_data(
        config,
        start.vae,
        start.tokenizer(),
        accelerator.device,
        latent_multiple=start.base.size_multiple,
        start=start,
    )
    trainer = Trainer(config, stage(config, start, data), accelerator, write)
    return Path(config.output) / "result" if trainer.run() else None


def _change_targets(source: Path, folder: Path, target: MakeTarget) -> None:
    """Write samples anew with other targets; shards that are whole are kept."""
    manifest = read_manifest(source)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    with tqdm(total=manifest["samples"], desc="targets", unit="sample", disable=None) as bar:
        samples = read_samples(source)
        for number, shard in enumerate(manifest["shards"]):
            changed = _changed(samples, shard["samples"], target, bar)
            record = kept_record(folder, number)
            if record is None:
                record = write_shard(folder, number, changed, first=shard["first"])
            for _ in changed:  # of a shard that is kept
                pass
            records.append(record)
    write_manifest(folder, records, manifest["settings"])


def _changed(
    samples: Iterator[StoredSample], count: int, target: MakeTarget, bar: Any
) -> Iterator[StoredSample]:
    for _ in range(count):
        sample = next(samples)
        bar.update()
        yield replace(sample, target=target(sample))
