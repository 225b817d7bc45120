"""Synthetic shards: a function of seed and settings, kept when whole, refused when of others."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training import synthesize as module
from bootpig_rt.training.compose import Sample, WorldConfig
from bootpig_rt.training.shards import read_manifest, read_samples
from bootpig_rt.training.synthesize import (
    ShardPlan,
    Subjects,
    SynthesisConfig,
    sample_at,
    synthesize,
    write_drawn_shard,
)

WORLD = WorldConfig(size_px=16)
CONFIG = SynthesisConfig(10, seed=4, shard_size=4, world=WORLD)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def made(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    synthesize(folder, subjects, CONFIG)
    return folder


def test_a_second_folder_gets_the_same_bytes(
    made: Path, subjects: Subjects, tmp_path: Path
) -> None:
    synthesize(tmp_path, subjects, CONFIG)
    assert len(digests(tmp_path)) == 3
    assert digests(tmp_path) == digests(made)
    assert read_manifest(tmp_path) == read_manifest(made)


def test_two_processes_make_the_same_bytes_as_one(
    made: Path, subjects: Subjects, tmp_path: Path
) -> None:
    seen: list[int] = []
    synthesize(
        tmp_path, subjects, CONFIG, num_workers=2, on_shard=lambda r: seen.append(r["first"])
    )
    assert digests(tmp_path) == digests(made)
    assert read_manifest(tmp_path) == read_manifest(made)
    assert seen == [0, 4, 8]


def test_the_manifest_names_every_shard_with_its_digest_and_counts(made: Path) -> None:
    manifest = read_manifest(made)
    found = digests(made)
    assert {s["file"]: s["sha256"] for s in manifest["shards"]} == found
    assert [s["samples"] for s in manifest["shards"]] == [4, 4, 2]
    assert manifest["samples"] == 10
    assert manifest["settings"]["seed"] == 4
    assert manifest["settings"]["world"]["size_px"] == 16


def test_a_lost_shard_is_made_again_as_it_was(
    made: Path, subjects: Subjects, tmp_path: Path
) -> None:
    synthesize(tmp_path, subjects, CONFIG)
    (tmp_path / "shard-00001.tar").unlink()
    (tmp_path / "manifest.json").unlink()
    kept = (tmp_path / "shard-00000.tar").stat().st_mtime_ns
    synthesize(tmp_path, subjects, CONFIG)
    assert digests(tmp_path) == digests(made)
    assert (tmp_path / "shard-00000.tar").stat().st_mtime_ns == kept


def test_a_truncated_shard_is_made_again(made: Path, subjects: Subjects, tmp_path: Path) -> None:
    synthesize(tmp_path, subjects, CONFIG)
    shard = tmp_path / "shard-00002.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    synthesize(tmp_path, subjects, CONFIG)
    assert digests(tmp_path) == digests(made)


def test_an_interrupted_shard_leaves_nothing_and_the_next_call_goes_on(
    made: Path, subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(index: int, *args: Any) -> Any:
        if index == 6:
            raise KeyboardInterrupt
        return sample_at(index, *args)

    monkeypatch.setattr(module, "sample_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, subjects, CONFIG)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"settings.json", "shard-00000.tar", "shard-00000.json"}
    with pytest.raises(InputError, match="run it again if it was interrupted"):
        read_manifest(tmp_path)
    monkeypatch.undo()
    synthesize(tmp_path, subjects, CONFIG)
    assert digests(tmp_path) == digests(made)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"num_samples": 11},
        {"shard_size": 5},
        {"world": WorldConfig(size_px=16, hue_probability=0.5)},
    ],
)
def test_other_settings_in_the_folder_are_refused(
    made: Path, subjects: Subjects, change: dict[str, Any]
) -> None:
    before = digests(made)
    with pytest.raises(ConfigError, match="other settings; choose another folder"):
        synthesize(made, subjects, dataclasses.replace(CONFIG, **change))
    assert digests(made) == before


def test_other_drawings_in_the_folder_are_refused(made: Path, subjects: Subjects) -> None:
    other = dataclasses.replace(subjects, sprites=subjects.sprites[::-1].copy())
    with pytest.raises(ConfigError, match="other settings"):
        synthesize(made, other, CONFIG)


def test_a_sample_does_not_depend_on_the_size_of_shards(
    made: Path, subjects: Subjects, tmp_path: Path
) -> None:
    synthesize(tmp_path, subjects, dataclasses.replace(CONFIG, shard_size=7))
    for one, other in zip(read_samples(made), read_samples(tmp_path), strict=True):
        assert one.index == other.index
        assert np.array_equal(one.target, other.target)
        assert one.record == other.record


def test_another_seed_makes_other_samples(subjects: Subjects) -> None:
    first, _, _ = sample_at(0, subjects, CONFIG)
    other, _, _ = sample_at(0, subjects, dataclasses.replace(CONFIG, seed=5))
    assert not np.array_equal(first.target, other.target)


def test_what_is_read_back_is_what_was_drawn(made: Path, subjects: Subjects) -> None:
    stored = list(read_samples(made))
    assert [sample.index for sample in stored] == list(range(10))
    for sample in stored:
        drawn, row, _ = sample_at(sample.index, subjects, CONFIG)
        assert np.array_equal(sample.target, drawn.target)
        assert np.array_equal(sample.mask, drawn.mask)
        assert np.array_equal(np.stack(sample.references), drawn.references)
        assert sample.caption == drawn.caption.text
        assert sample.reference_prompt == drawn.caption.reference_prompt
        assert sample.record["style"] == subjects.styles[row]
        assert sample.record["concept"] == subjects.concepts[row]
        assert sample.record["scene"] == drawn.caption.scene
        assert sample.record["is_same_view"] == drawn.is_same_view


def test_a_held_out_combination_is_never_stored_and_its_rejects_are_counted(
    subjects: Subjects, tmp_path: Path
) -> None:
    dogs = dataclasses.replace(
        subjects,
        sprites=subjects.sprites[:2],
        nouns=subjects.nouns[:2],
        concepts=subjects.concepts[:2],
        styles=subjects.styles[:2],
    )
    config = SynthesisConfig(150, seed=0, shard_size=75, world=WORLD)
    manifest = synthesize(tmp_path, dogs, config)
    scenes = {sample.record["scene"] for sample in read_samples(tmp_path)}
    assert scenes.isdisjoint({"beach", "snow"})
    assert len(scenes) == 14
    # Two scenes of sixteen: about a seventh as many rejects as samples.
    assert 8 <= manifest["rejects"]["held_out_combination"] <= 45


def test_rejects_of_the_manifest_are_the_sum_over_samples(made: Path, subjects: Subjects) -> None:
    counted: dict[str, int] = {}
    for index in range(10):
        for reason, count in sample_at(index, subjects, CONFIG)[2].items():
            counted[reason] = counted.get(reason, 0) + count
    assert read_manifest(made)["rejects"] == counted


def test_a_world_in_which_every_draw_is_rejected_is_an_error(subjects: Subjects) -> None:
    invisible = dataclasses.replace(subjects, sprites=np.zeros_like(subjects.sprites))
    with pytest.raises(ConfigError, match="64 draws were all rejected.*low_contrast"):
        sample_at(0, invisible, CONFIG)


def test_each_draw_of_a_sample_has_random_numbers_of_its_own(subjects: Subjects) -> None:
    drawn = [sample_at(index, subjects, CONFIG)[0] for index in range(6)]
    assert all(isinstance(sample, Sample) for sample in drawn)
    assert len({sample.target.tobytes() for sample in drawn}) == 6


@pytest.mark.parametrize(
    ("config", "workers", "message"),
    [
        (SynthesisConfig(0), 1, "must be at least 1, got 0"),
        (SynthesisConfig(4, shard_size=0), 1, "must be at least 1, got 4, 0"),
        (SynthesisConfig(4), 0, "must be at least 1"),
        (SynthesisConfig(4, seed=-1), 1, "seed is -1, expected 0 or more"),
        (SynthesisConfig(4, world=WorldConfig(size_px=4)), 1, "size_px is 4, expected 8 to 1024"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    config: SynthesisConfig, workers: int, message: str, subjects: Subjects, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesize(tmp_path, subjects, config, num_workers=workers)
    assert not any(tmp_path.iterdir())


def test_one_shard_is_kept_when_its_record_and_size_fit(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")

    def never(index: int) -> Any:
        raise AssertionError(f"{index} drawn again")

    plan = ShardPlan(tmp_path / "copy", 10, 4)
    record = write_drawn_shard(0, plan, never)
    assert record == read_manifest(made)["shards"][0]
    with (tmp_path / "copy" / "shard-00000.tar").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(AssertionError, match="0 drawn again"):
        write_drawn_shard(0, plan, never)
