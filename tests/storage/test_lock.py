"""Locks of a store: who holds one is alone, and who cannot have one goes on."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.storage import lock as store_lock
from bootpig_rt.storage.lock import alone

fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")


class Held:
    """A thread that holds a lock until it is let go."""

    def __init__(self, file: Path, purpose: str) -> None:
        self.inside, self.let_go = threading.Event(), threading.Event()

        def hold() -> None:
            with alone(file, purpose):
                self.inside.set()
                self.let_go.wait(30)

        self.thread = threading.Thread(target=hold, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.let_go.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    holder = Held(tmp_path / ".lock", "dog")
    assert holder.inside.wait(30)
    yield holder
    holder.end()


def is_locked(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_the_second_of_a_purpose_waits_for_the_first(tmp_path: Path, held: Held) -> None:
    second = Held(tmp_path / ".lock", "dog")
    assert not second.inside.wait(0.2)
    held.end()
    assert second.inside.wait(30)
    assert is_locked(tmp_path / ".lock")
    second.end()
    assert not is_locked(tmp_path / ".lock")
    assert (tmp_path / ".lock").exists()


def test_threads_of_one_process_with_other_purposes_do_not_wait(tmp_path: Path, held: Held) -> None:
    other = Held(tmp_path / ".lock", "cat")
    assert other.inside.wait(30)
    other.end()
    assert is_locked(tmp_path / ".lock")  # the first one still holds it


def test_a_block_that_raises_gives_its_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), alone(tmp_path / ".lock", "dog"):
        raise KeyboardInterrupt
    assert not is_locked(tmp_path / ".lock")
    with alone(tmp_path / ".lock", "cat"):
        assert is_locked(tmp_path / ".lock")


def test_nobody_waits_for_ever(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_lock, "MAX_WAIT_S", 0.1)
    with alone(tmp_path / ".lock", "dog"):
        assert "is held by another process; going on without it" in caplog.text


def refuse(number: int) -> Any:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    ran = []
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        for purpose in ("dog", "cat"):
            with alone(tmp_path / ".lock", purpose):
                ran.append(purpose)
    assert ran == ["dog", "cat"]
    assert caplog.text.count("no locks in") == 1


def test_a_system_without_locks_and_a_missing_folder_cost_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        with alone(tmp_path / "none" / ".lock", "dog"):
            pass
        monkeypatch.setattr(store_lock, "fcntl", None)
        with alone(tmp_path / ".lock", "dog"):
            pass
    assert "No such file or directory" in caplog.text
    assert "this system has no file locks" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with alone(tmp_path / ".lock", "dog"):
        pass
    assert not (tmp_path / "other").exists()
