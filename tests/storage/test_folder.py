"""A folder of tables and subjects that processes, and versions of the package, share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.backends.host_table import pack_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject
from bootpig_rt.storage import folder as folder_module
from bootpig_rt.storage.folder import StoreFolder


def saved(name: str) -> ReferenceTable:
    key = ReferenceKey(
        subject=name,
        pixels="p",
        reference_prompt="a dog",
        noise_seed=0,
        pair="pair",
        is_noised=False,
        timesteps=(0,),
        ref_scale=1.0,
        precision="float32",
        dtype="float32",
        size=(8, 8),
        num_references=1,
    )
    numbers = np.full((1, 1, 2, 3, 4), len(name), np.float32)
    return ReferenceTable.on_host(key, pack_table([(numbers, numbers)], "float32"))


def bytes_under(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*.table"))


@pytest.fixture
def size(tmp_path: Path) -> int:
    """Bytes of a table's file."""
    folder = StoreFolder(tmp_path / "one")
    folder.write(saved("a"))
    return folder.size_bytes()


class OtherVersion:
    """The same folder as a version with another schema sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: StoreFolder) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder

    def write(self, name: str) -> None:
        with self.monkeypatch.context() as patch:
            patch.setattr(folder_module, "SCHEMA", "1000")
            assert self.folder.write(saved(name)) is None

    def has(self, name: str) -> bool:
        with self.monkeypatch.context() as patch:
            patch.setattr(folder_module, "SCHEMA", "1000")
            return self.folder.read(saved(name).key)[0] is not None


def test_two_versions_neither_read_nor_delete_each_others_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one key both had one file: each dropped the other's as damaged and wrote its own."""
    folder = StoreFolder(tmp_path)
    other = OtherVersion(monkeypatch, folder)
    other.write("dog")
    assert folder.read(saved("dog").key) == (None, None)
    folder.write(saved("dog"))
    assert other.has("dog")
    assert folder.read(saved("dog").key)[0] is not None


def test_a_version_evicts_its_own_tables_beyond_half_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    folder = StoreFolder(tmp_path / "store", 4 * size)
    other = OtherVersion(monkeypatch, folder)
    other.write("old 1")
    other.write("old 2")
    for name in ("dog", "cat", "owl", "pig"):
        folder.write(saved(name))
        assert bytes_under(folder.path) <= 4 * size + 64  # names differ in length
    assert other.has("old 1")
    assert other.has("old 2")
    assert folder.read(saved("dog").key)[0] is None
    assert folder.read(saved("pig").key)[0] is not None


def test_a_full_folder_of_another_version_does_not_starve_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    folder = StoreFolder(tmp_path / "store", 4 * size + 64)
    other = OtherVersion(monkeypatch, folder)
    for number in range(4):
        other.write(f"old {number}")
    for name in ("dog", "cat", "owl"):
        folder.write(saved(name))
        assert bytes_under(folder.path) <= folder.max_bytes
    assert folder.read(saved("cat").key)[0] is not None
    assert folder.read(saved("owl").key)[0] is not None
    assert [other.has(f"old {number}") for number in range(4)] == [False, False, True, True]


def test_a_table_that_is_half_of_the_folder_finds_room_among_another_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    folder = StoreFolder(tmp_path / "store", 2 * size)
    other = OtherVersion(monkeypatch, folder)
    other.write("b")
    other.write("c")
    folder.write(saved("a"))
    assert folder.read(saved("a").key)[0] is not None
    assert [other.has(name) for name in ("b", "c")].count(True) == 1


def test_removing_a_subject_frees_its_file_and_its_tables_of_all_tenants(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path)
    dog, cat = (
        Subject(None, np.zeros((1, 4, 8, 8), np.float32), prompt, 0, "pair")
        for prompt in ("a dog", "a cat")
    )
    for name, subject in (("dog", dog), ("cat", cat)):
        folder.save_subject(name, subject)
        for tenant in ("", "a"):
            folder.write(saved(subject.fingerprint), tenant)
    before = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    freed = folder.remove_subject("dog")
    after = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert freed == before - after
    assert folder.subject_names() == ["cat"]
    for tenant in ("", "a"):
        assert folder.read(saved(dog.fingerprint).key, tenant) == (None, None)
        assert folder.read(saved(cat.fingerprint).key, tenant)[0] is not None


def test_the_least_recently_used_table_goes_first(tmp_path: Path, size: int) -> None:
    folder = StoreFolder(tmp_path / "store", 2 * size + 8)
    for age, name in enumerate(("dog", "cat")):
        folder.write(saved(name))
        (file,) = (f for f in folder.tables.glob("*.table") if f.stat().st_mtime > 1e6)
        os.utime(file, (age, age))
    folder.read(saved("dog").key)  # which uses it
    folder.write(saved("owl"))
    assert folder.read(saved("cat").key)[0] is None
    assert folder.read(saved("dog").key)[0] is not None


@pytest.mark.parametrize(("limit", "is_kept"), [(-1, False), (0, True)])
def test_a_table_is_kept_up_to_the_very_last_byte(
    tmp_path: Path, size: int, limit: int, is_kept: bool
) -> None:
    folder = StoreFolder(tmp_path / "store", size + limit)
    folder.write(saved("a"))
    assert (folder.read(saved("a").key)[0] is not None) is is_kept
