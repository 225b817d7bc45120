"""Drawings of one split: no other split's drawing and no held-out scene gets into its shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.errors import InputError, StorageError
from bootpig_rt.training.compose import WorldConfig
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.shards import read_samples
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.synthesize import Subjects, SynthesisConfig, synthesize
from bootpig_rt.training.world import load_subjects


@pytest.mark.parametrize(
    ("split", "rows"),
    [("train", range(10)), ("held_out_identity", [10]), ("held_out_concept", [11])],
)
def test_a_split_gives_its_own_drawings(
    drawings: Path, subjects: Subjects, split: str, rows: list[int]
) -> None:
    loaded = load_subjects(drawings, split)
    assert loaded.concepts == [subjects.concepts[row] for row in rows]
    assert loaded.styles == [subjects.styles[row] for row in rows]
    assert loaded.nouns == [subjects.nouns[row] for row in rows]
    assert np.array_equal(loaded.sprites, subjects.sprites[list(rows)])


def test_shards_for_training_hold_no_drawing_of_another_split(
    drawings: Path, tmp_path: Path
) -> None:
    world = WorldConfig(size_px=16)
    synthesize(tmp_path, load_subjects(drawings, "train"), SynthesisConfig(80, world=world))
    entries = json.loads((drawings / "sprites.json").read_text())
    split_of = {(e["concept"], e["style"]): e["split"] for e in entries}
    seen = {(s.record["concept"], s.record["style"]) for s in read_samples(tmp_path)}
    assert len(seen) == 10
    assert {split_of[pair] for pair in seen} == {"train"}


def test_shards_for_training_hold_no_held_out_combination(drawings: Path, tmp_path: Path) -> None:
    # A concept of the real lists, here with as many of its scenes held out as can be.
    held_out = {c: s for c, s in load_splits().held_out_scenes().items() if len(s) > 0}
    concept = sorted(held_out)[0]
    data = tmp_path / "data"
    shutil.copytree(drawings, data)
    entries = json.loads((data / "sprites.json").read_text())
    for entry in entries:
        entry["concept"] = concept
    (data / "sprites.json").write_text(json.dumps(entries))
    config = SynthesisConfig(100, world=WorldConfig(size_px=16))
    manifest = synthesize(tmp_path / "out", load_subjects(data, "train"), config)
    seen = {s.record["scene"] for s in read_samples(tmp_path / "out")}
    assert seen == set(SCENES) - held_out[concept]
    assert manifest["rejects"]["held_out_combination"] > 0


def test_the_lists_give_each_drawing_one_split() -> None:
    splits = load_splits()
    concept = sorted(splits.concepts)[0]
    pair = sorted(splits.identities)[0]
    assert splits.split_of(concept, "noto") == "held_out_concept"
    assert splits.split_of(*pair) == "held_out_identity"
    assert splits.split_of(pair[0], "no such style") == "train"


def test_a_folder_without_the_split_is_refused_with_the_command(
    drawings: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no drawings of split 'tests'.*fetch-data"):
        load_subjects(drawings, "tests")
    with pytest.raises(StorageError, match="no sprites in .*fetch-data"):
        load_subjects(tmp_path, "train")
