"""Claims on tables: one holder at a time, nobody waits, and a dead process holds nothing."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.host_table import pack_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.storage.folder import StoreFolder

HOLD = """
import sys
from pathlib import Path
from bootpig_rt.storage import claim
held = claim.take(Path(sys.argv[1]))
print("held" if held else "refused", flush=True)
sys.stdin.readline()
held.release()
print("released", flush=True)
sys.stdin.readline()
"""


def key(name: str) -> ReferenceKey:
    return ReferenceKey(
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


def locks(folder: StoreFolder) -> list[Path]:
    return list(folder.tables.glob(".*.lock"))


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    return StoreFolder(tmp_path / "store")


def hold_elsewhere(folder: StoreFolder, name: str) -> subprocess.Popen[str]:
    """Another process that holds the claim of a table."""
    mine = folder.claim(key(name))  # in order to see the file of its lock
    assert mine is not None
    (file,) = locks(folder)
    mine.release()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert said(holder) == "held"
    return holder


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_table_that_another_process_makes_is_refused_until_it_is_released(
    folder: StoreFolder,
) -> None:
    holder = hold_elsewhere(folder, "dog")
    assert folder.claim(key("dog")) is None
    go_on(holder)
    assert said(holder) == "released"
    assert folder.claim(key("dog")) is not None
    go_on(holder)
    holder.communicate(timeout=30)


def test_a_killed_process_holds_nothing(folder: StoreFolder) -> None:
    holder = hold_elsewhere(folder, "dog")
    holder.kill()
    holder.communicate(timeout=30)
    assert len(locks(folder)) == 1  # it is left, and stands for nothing
    claim = folder.claim(key("dog"))
    assert claim is not None
    claim.release()
    assert locks(folder) == []


def test_every_table_has_a_claim_of_its_own(folder: StoreFolder) -> None:
    """Tables shared 64 locks: a hundred claims at once could not all be had."""
    held = [folder.claim(key(str(number))) for number in range(100)]
    assert None not in held
    assert len(locks(folder)) == 100
    assert folder.claim(key("7")) is None
    assert folder.claim(key("7"), "another tenant") is not None
    for claim in held:
        assert claim is not None
        claim.release()
    assert folder.claim(key("7")) is not None


def test_of_many_threads_one_has_the_claim_at_a_time(folder: StoreFolder) -> None:
    """Holders unlink the lock file while others open it: two must never both be inside."""
    inside, worst, taken, guard = 0, 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, worst, taken
        for _ in range(200):
            claim = folder.claim(key("dog"))
            if claim is None:
                continue
            with guard:
                inside, taken = inside + 1, taken + 1
                worst = max(worst, inside)
            os.stat(folder.path)  # lets others run
            with guard:
                inside -= 1
            claim.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert worst == 1
    assert taken > 1
    assert locks(folder) == []


def test_a_claim_is_released_by_any_thread_and_once(folder: StoreFolder) -> None:
    claim = folder.claim(key("dog"))
    assert claim is not None
    thread = threading.Thread(target=claim.release)
    thread.start()
    thread.join()
    again = folder.claim(key("dog"))
    assert again is not None
    claim.release()  # the second time: nothing of another holder's goes
    assert folder.claim(key("dog")) is None


def test_a_claim_whose_file_cannot_be_removed_is_released_by_another_thread(
    folder: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is made on one thread and written by another; the lock itself must go."""
    claim = folder.claim(key("dog"))
    assert claim is not None
    lock = claim._lock  # kept, so that it is not released by being collected

    def refuse(path: Path, **options: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(Path, "unlink", refuse)
        pool.submit(claim.release).result()
    assert len(locks(folder)) == 1
    assert folder.claim(key("dog")) is not None
    assert lock is not None


def test_a_lock_that_cannot_be_released_is_nobodys_error(
    folder: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")
    claim = folder.claim(key("dog"))
    assert claim is not None

    def refuse(descriptor: int, how: int) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        claim.release()
    assert folder.claim(key("dog")) is not None  # its file is gone, and who claims makes another


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once_and_everybody_has_a_claim(
    folder: StoreFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")

    def refuse(descriptor: int, how: int) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        claims = [folder.claim(key(name)) for name in ("dog", "dog", "cat")]
    assert None not in claims
    assert caplog.text.count("no locks in") == caplog.text.count(f"in {folder.tables} (") == 1
    assert os.strerror(number).lower() in caplog.text


def test_a_folder_that_cannot_be_made_costs_no_table(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    claim = StoreFolder(tmp_path / "store").claim(key("dog"))
    assert claim is not None
    claim.release()
    assert (tmp_path / "store").read_text() == "a file"


def test_a_planted_link_is_not_followed(folder: StoreFolder, tmp_path: Path) -> None:
    mine = folder.claim(key("dog"))
    assert mine is not None
    (file,) = locks(folder)
    mine.release()
    file.symlink_to(tmp_path / "other")
    assert folder.claim(key("dog")) is not None
    assert not (tmp_path / "other").exists()


def test_writing_a_table_removes_the_locks_of_the_dead_and_keeps_those_of_the_living(
    folder: StoreFolder,
) -> None:
    living = folder.claim(key("cat"))
    assert living is not None
    (folder.tables / ".0123.lock").touch()  # as a killed process leaves it
    numbers = np.zeros((1, 1, 2, 3, 4), np.float32)
    assert (
        folder.write(
            ReferenceTable.on_host(key("dog"), pack_table([(numbers, numbers)], "float32"))
        )
        is None
    )
    assert len(locks(folder)) == 1
    assert folder.claim(key("cat")) is None
