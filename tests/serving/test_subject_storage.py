"""Subjects in a folder and in object storage, shared by processes that trust none of its files."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.errors import ParameterError, StorageError
from bootpig_rt.reference.subject import Subject
from bootpig_rt.serving.subject_storage import SubjectStorage

pytest.importorskip("fsspec")


def subject_of(seed: int = 0) -> Subject:
    rng = np.random.default_rng(seed)
    return Subject(
        pixels=rng.uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32),
        latents=rng.standard_normal((1, 4, 8, 8)).astype(np.float32),
        reference_prompt="a photo of an owl",
        noise_seed=0,
        pair_fingerprint="0" * 64,
        prompt_states=rng.standard_normal((24, 32)).astype(np.float32),
    )


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that nobody has used."""
    return {
        "folder": str(tmp_path / "subjects"),
        "file": f"file://{tmp_path}/subjects",
        "memory": f"memory://{secrets.token_hex(8)}",
    }[request.param]


def test_another_process_reads_what_one_has_put(url: str) -> None:
    subject = subject_of()
    SubjectStorage(url).put(subject, "")
    again = SubjectStorage(url).get(subject.fingerprint, "")
    assert again.fingerprint == subject.fingerprint
    np.testing.assert_array_equal(again.latents, subject.latents)
    assert again.pixels is None  # light


def test_a_subject_that_is_unknown_or_of_another_tenant_is_refused(url: str) -> None:
    subject = subject_of()
    SubjectStorage(url).put(subject, "ann")
    for tenant, fingerprint in (("ben", subject.fingerprint), ("ann", "f" * 64)):
        with pytest.raises(ParameterError, match="no subject"):
            SubjectStorage(url).get(fingerprint, tenant)


def test_a_removed_subject_is_gone_and_may_be_removed_twice(url: str) -> None:
    subject, storage = subject_of(), SubjectStorage(url)
    storage.put(subject, "")
    assert storage.holds(subject.fingerprint, "")
    storage.remove(subject.fingerprint, "")
    storage.remove(subject.fingerprint, "")
    assert not storage.holds(subject.fingerprint, "")
    with pytest.raises(ParameterError):
        storage.get(subject.fingerprint, "")


def test_what_was_read_once_is_kept_in_memory_and_no_more_than_that(url: str) -> None:
    subjects, storage = [subject_of(seed) for seed in range(3)], SubjectStorage(url, max_kept=2)
    for subject in subjects:
        storage.put(subject, "")
    assert [storage.holds(one.fingerprint, "") for one in subjects] == [False, True, True]
    assert storage.get(subjects[2].fingerprint, "") is subjects[2]
    assert storage.get(subjects[0].fingerprint, "") is not subjects[0]


def test_what_nobody_has_drawn_for_its_time_is_forgotten(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, storage, now = subject_of(), SubjectStorage(url, ttl_s=100.0), time.time()
    storage.drop_expired()  # there is no folder yet
    storage.put(subject, "ann")
    for later_s, is_there in ((90.0, True), (110.0, True), (130.0, False)):
        monkeypatch.setattr("time.time", lambda later_s=later_s: now + later_s)
        storage.drop_expired()
        if is_there:
            assert SubjectStorage(url).get(subject.fingerprint, "ann").fingerprint
        else:
            with pytest.raises(ParameterError, match="no subject"):
                SubjectStorage(url).get(subject.fingerprint, "ann")
    storage.put(subject, "ann")  # it is written again
    assert SubjectStorage(url).get(subject.fingerprint, "ann").fingerprint


def test_a_subject_that_is_drawn_again_and_again_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, storage, now = subject_of(), SubjectStorage(str(tmp_path), ttl_s=100.0), time.time()
    storage.put(subject, "")
    (file,) = tmp_path.rglob("*.subject")
    written = []
    for later_s in (10.0, 30.0):
        os.utime(file, (now - 90.0, now - 90.0))
        monkeypatch.setattr("time.time", lambda later_s=later_s: now + later_s)
        storage.put(subject, "")
        written.append(file.stat().st_mtime > now - 80.0)
    assert written == [False, True]


def test_memory_holds_a_subject_no_longer_than_its_file(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used, now = subject_of(0), subject_of(1), time.time()
    storage = SubjectStorage(url, ttl_s=100.0)
    storage.put(old, "")
    storage.put(used, "")
    monkeypatch.setattr("time.time", lambda: now + 60.0)
    storage.get(used.fingerprint, "")
    monkeypatch.setattr("time.time", lambda: now + 120.0)
    storage.drop_unused()
    assert not storage.holds(old.fingerprint, "")
    assert storage.holds(used.fingerprint, "")
    storage.drop(used.fingerprint, "")
    assert not storage.holds(used.fingerprint, "")


def test_a_place_that_does_not_tell_ages_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SubjectStorage(f"memory://{secrets.token_hex(8)}", ttl_s=100.0)
    storage.put(subject_of(), "")

    def modified(path: str) -> None:
        raise NotImplementedError

    monkeypatch.setattr(storage._files, "modified", modified)
    storage.drop_expired()
    storage.drop_expired()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "0" * 63, "0" * 63 + "/", "A" * 64])
def test_only_fingerprints_name_files(url: str, name: str) -> None:
    storage = SubjectStorage(url)
    with pytest.raises(ParameterError, match="not the fingerprint"):
        storage.get(name, "")
    with pytest.raises(ParameterError, match="not the fingerprint"):
        storage.remove(name, "")


def test_a_tenant_cannot_name_a_folder(tmp_path: Path) -> None:
    storage = SubjectStorage(str(tmp_path / "subjects"))
    storage.put(subject_of(), "../../elsewhere")
    (file,) = tmp_path.rglob("*.subject")
    assert file.parent.parent == tmp_path / "subjects"


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    subject = subject_of()
    SubjectStorage(str(tmp_path)).put(subject, "")
    (file,) = tmp_path.rglob("*.subject")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match="cannot be used"):
        SubjectStorage(str(tmp_path)).get(subject.fingerprint, "")


def test_a_file_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    one, other = subject_of(0), subject_of(1)
    SubjectStorage(str(tmp_path)).put(one, "")
    (file,) = tmp_path.rglob("*.subject")
    file.rename(file.with_name(f"{other.fingerprint}.subject"))
    with pytest.raises(StorageError, match="another one"):
        SubjectStorage(str(tmp_path)).get(other.fingerprint, "")


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "subjects").write_text("a file where a folder is wanted")
    with pytest.raises(StorageError, match="cannot keep"):
        SubjectStorage(str(tmp_path / "subjects")).put(subject_of(), "")


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(ParameterError, match="no-such-kind"):
        SubjectStorage("no-such-kind://bucket/subjects")
