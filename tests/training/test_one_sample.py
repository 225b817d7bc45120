"""The smallest data set there is: every stage trains on it and is validated on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.training.compose import WorldConfig
from bootpig_rt.training.shards import read_manifest
from bootpig_rt.training.synthesize import Subjects, SynthesisConfig, synthesize

pytestmark = pytest.mark.usefixtures("one_thread", "_short_validation")


@pytest.mark.parametrize("stage", ["vae", "base", "pair"])
def test_a_stage_trains_on_one_sample(
    stage: str,
    subjects: Subjects,
    make_config: Any,
    train: Any,
    vae_result: Path,
    base_result: Path,
    tmp_path: Path,
) -> None:
    samples, output = tmp_path / "samples", tmp_path / "run"
    synthesize(samples, subjects, SynthesisConfig(1, seed=3, world=WorldConfig(size_px=16)))
    assert read_manifest(samples)["samples"] == 1
    start = {"vae": "", "base": str(vae_result), "pair": str(base_result)}[stage]
    settings: dict[str, Any] = {"data": str(samples), "validation_data": str(samples)}
    if stage != "vae":
        settings["diffusion"] = {"augmentation": "light"}
    config = make_config(
        stage,
        output,
        start_from=start,
        steps=2,
        batch_size=3,
        log_every=1,
        validate_every=2,
        **settings,
    )
    assert train(config).step == 2
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert (output / "result").is_dir()
