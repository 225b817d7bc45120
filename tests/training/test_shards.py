"""Shards: what is written is read back, damage is named, and what others wrote is read too."""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import ConfigError, InputError, StorageError
from bootpig_rt.training.shards import (
    StoredSample,
    claim_settings,
    kept_record,
    read_manifest,
    read_samples,
    read_shard,
    write_manifest,
    write_shard,
    write_tar,
)


def make_sample(index: int, *, references: int = 2, size_px: int = 12) -> StoredSample:
    rng = np.random.default_rng(index)

    def picture(*shape: int) -> Any:
        return rng.integers(0, 256, (size_px, size_px, *shape), dtype=np.uint8)

    return StoredSample(
        index,
        picture(3),
        picture(),
        [picture(3) for _ in range(references)],
        "a photo of a dog, on the beach",
        "a photo of a dog",
        {"noun": "dog"},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples in three shards."""
    folder = tmp_path_factory.mktemp("made")
    records = [
        write_shard(folder, k, map(make_sample, range(4 * k, min(4 * k + 4, 10))), first=4 * k)
        for k in range(3)
    ]
    write_manifest(folder, records, {"seed": 1})
    return folder


def test_what_is_written_is_read_back(made: Path) -> None:
    stored = list(read_samples(made))
    assert [sample.index for sample in stored] == list(range(10))
    for sample in stored:
        wanted = make_sample(sample.index)
        assert np.array_equal(sample.target, wanted.target)
        assert np.array_equal(sample.mask, wanted.mask)
        assert np.array_equal(np.stack(sample.references), np.stack(wanted.references))
        assert (sample.caption, sample.reference_prompt) == (
            wanted.caption,
            wanted.reference_prompt,
        )
        assert sample.record["noun"] == "dog"
    assert read_manifest(made)["samples"] == 10


def test_twelve_references_come_back_in_their_order(tmp_path: Path) -> None:
    sample = make_sample(0, references=12)
    write_shard(tmp_path, 0, [sample], first=0)
    (stored,) = read_shard(tmp_path / "shard-00000.tar")
    assert np.array_equal(np.stack(stored.references), np.stack(sample.references))


def test_rejects_may_be_counted_while_samples_are_made(tmp_path: Path) -> None:
    rejects: Counter[str] = Counter()

    def samples() -> Iterator[StoredSample]:
        for index in range(3):
            rejects["border"] += 2
            yield make_sample(index)

    first = write_shard(tmp_path, 0, samples(), first=0, rejects=rejects)
    assert (first["samples"], first["rejects"]) == (3, {"border": 6})
    other = write_shard(tmp_path, 1, [make_sample(3)], first=3, rejects={"area": 1, "border": 1})
    manifest = write_manifest(tmp_path, [first, other], {}, sources={"model": "sd"})
    assert manifest["rejects"] == {"area": 1, "border": 7}
    assert read_manifest(tmp_path)["sources"] == {"model": "sd"}


def test_a_shard_is_kept_while_record_and_size_fit(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    assert kept_record(folder, 1) == read_manifest(made)["shards"][1]
    (folder / "shard-00001.tar").write_bytes(b"short")
    assert kept_record(folder, 1) is None
    (folder / "shard-00002.json").unlink()
    assert kept_record(folder, 2) is None


def test_a_folder_is_of_one_making(tmp_path: Path) -> None:
    claim_settings(tmp_path, {"seed": 1})
    claim_settings(tmp_path, {"seed": 1})
    with pytest.raises(ConfigError, match="samples of other settings; choose another folder"):
        claim_settings(tmp_path, {"seed": 2})


def test_a_full_disk_leaves_no_shard_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path, 0, [make_sample(0)], first=0)
    before = {path.name for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(StorageError, match=r"shard-00001\.tar.*free some space"):
        write_shard(tmp_path, 1, [make_sample(1)], first=1)
    assert {path.name for path in tmp_path.iterdir()} == before


def encode(pixels: Any, kind: str) -> bytes:
    stream: BinaryIO = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    stream.seek(0)
    return stream.read()


def test_jpeg_and_webp_of_other_writers_are_read(tmp_path: Path) -> None:
    sample = make_sample(7, size_px=32)
    flat = np.full((32, 32, 3), 90, dtype=np.uint8)
    texts = {"caption": "a photo of a cup", "reference_prompt": "a photo of a cup", "more": 1}
    # The members' order and a folder in the key are others' choice.
    write_tar(
        tmp_path / "foreign.tar",
        [
            ("train/000007.json", json.dumps(texts).encode()),
            ("train/000007.mask.png", encode(sample.mask > 127, "PNG")),
            ("train/000007.reference0.webp", encode(flat, "WEBP")),
            ("train/000007.target.jpg", encode(flat, "JPEG")),
            ("train/000007.notes.txt", b"not ours"),
        ],
    )
    (stored,) = read_shard(tmp_path / "foreign.tar")
    assert stored.index == 7
    assert np.abs(stored.target.astype(int) - 90).max() <= 2
    assert np.abs(stored.references[0].astype(int) - 90).max() <= 2
    assert np.array_equal(stored.mask, np.where(sample.mask > 127, 255, 0))
    assert stored.record["more"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target.png": None}, "sample 00000000 has no target.png, only json, mask.png"),
        ({"mask.png": None}, "sample 00000000 has no mask.png"),
        ({"json": None}, "has no json"),
        ({"json": b"{"}, "sample 00000000: Expecting property name"),
        (
            {"json": b'{"caption": "a dog"}'},
            "the json of sample 00000000 has no 'reference_prompt'",
        ),
        ({"json": b"[]"}, "sample 00000000: list indices"),
        ({"target.png": b"no picture"}, "sample 00000000: cannot identify image file"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    sample = make_sample(0)
    parts = {
        "target.png": encode(sample.target, "PNG"),
        "mask.png": encode(sample.mask, "PNG"),
        "json": json.dumps({"caption": "a", "reference_prompt": "a"}).encode(),
    } | change
    members = [(f"00000000.{part}", data) for part, data in parts.items() if data is not None]
    write_tar(tmp_path / "one.tar", members)
    with pytest.raises(InputError, match=message):
        list(read_shard(tmp_path / "one.tar"))


def test_keys_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    sample = make_sample(0)
    members = [
        ("dog.target.png", encode(sample.target, "PNG")),
        ("dog.mask.png", encode(sample.mask, "PNG")),
        ("dog.json", b'{"caption": "a", "reference_prompt": "a"}'),
    ]
    write_tar(tmp_path / "one.tar", members)
    with pytest.raises(InputError, match="sample dog: invalid literal"):
        list(read_shard(tmp_path / "one.tar"))


def test_a_folder_without_manifest_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json; make samples with `bootpig-rt synth"):
        list(read_samples(tmp_path))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 7}))
    with pytest.raises(InputError, match="format 7, expected 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", "\0"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is no manifest of shards"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [None, b"no tar at all" * 100])
def test_a_damaged_or_missing_shard_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "shard-00000.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00000\.tar .*delete it and run"):
        list(read_shard(path))


def test_a_shard_that_ends_early_is_named(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.tar"
    whole = (made / "shard-00000.tar").read_bytes()
    for size in (700, 2500, 5000):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="delete it and run"):
            list(read_shard(path))


def test_a_shard_that_was_cut_between_two_samples_is_named(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    path = folder / "shard-00001.tar"
    with tarfile.open(path) as tar:
        second_sample = next(m.offset for m in tar if m.name.startswith("00000005"))
    path.write_bytes(path.read_bytes()[:second_sample])
    with pytest.raises(InputError, match=r"shard-00001\.tar .*bytes, expected"):
        list(read_samples(folder))
