"""Shards that were cut, exchanged or are somebody else's: named, never read as something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.shards import (
    claim_settings,
    kept_record,
    read_manifest,
    read_samples,
    shard_name,
    write_tar,
)


@pytest.fixture
def copied(samples: Path, tmp_path: Path) -> Path:
    """Three shards of 10, 10 and 4 samples."""
    folder = tmp_path / "copy"
    shutil.copytree(samples, folder)
    return folder


def trim_manifest(folder: Path, number: int) -> None:
    """Say of a shard the size that it has now, as a careless copy of a record would."""
    manifest = read_manifest(folder)
    shard = manifest["shards"][number]
    shard["bytes"] = (folder / shard["file"]).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_two_shards_that_changed_names_are_noticed(copied: Path) -> None:
    first, second = copied / shard_name(0), copied / shard_name(1)
    first.rename(copied / "aside")
    second.rename(first)
    (copied / "aside").rename(second)
    with pytest.raises(InputError, match=r"shard-00000\.tar .*"):
        list(read_samples(copied))
    trim_manifest(copied, 0)
    with pytest.raises(InputError, match="sample 10 is where 0 should be; was it renamed"):
        list(read_samples(copied))


def test_a_shard_under_another_name_is_missing(copied: Path) -> None:
    (copied / shard_name(1)).rename(copied / "shard-1.tar")
    stored = read_samples(copied)
    with pytest.raises(InputError, match=r"cannot read the shard .*shard-00001\.tar"):
        list(stored)


def test_a_tar_of_somebody_else_is_no_shard(copied: Path) -> None:
    write_tar(copied / shard_name(0), [("00000000.jpg", b"x"), ("00000000.txt", b"a dog")])
    trim_manifest(copied, 0)
    with pytest.raises(InputError, match=r"sample 00000000 has no target\.png, only jpg, txt"):
        list(read_samples(copied))


def test_a_shard_with_fewer_samples_than_its_manifest_says_is_named(copied: Path) -> None:
    manifest = read_manifest(copied)
    manifest["shards"][1]["samples"] = 11
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"shard-00001\.tar .10 samples, expected 11"):
        list(read_samples(copied))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"bytes": 3}', '{"file": "shard-00001.tar"}'])
def test_a_record_that_is_damaged_or_of_another_shard_counts_as_none(
    content: str, copied: Path
) -> None:
    assert kept_record(copied, 0) is not None
    (copied / "shard-00000.json").write_text(content)
    assert kept_record(copied, 0) is None


def test_settings_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"settings\.json is damaged .* choose another folder"):
        claim_settings(tmp_path, {"seed": 1})
