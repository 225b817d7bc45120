"""Files that several processes make side by side: each once, whole, whoever dies."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from bootpig_rt.errors import StorageError
from bootpig_rt.storage import claim
from bootpig_rt.training import caches
from bootpig_rt.training.caches import make_missing, map_tensors, write_tensors


def files_in(folder: Path, count: int = 6) -> list[Path]:
    return [folder / "some" / f"{number}.safetensors" for number in range(count)]


def make_all(files: list[Path], make: Callable[[int], None]) -> None:
    make_missing(files, [1] * len(files), lambda i, _: make(i), what="files", unit="file")


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_PAUSE_S", 0.001)


def test_files_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    files, made = files_in(tmp_path), list[int]()

    def make(i: int) -> None:
        made.append(i)
        files[i].write_text("new")

    files[0].parent.mkdir()
    files[2].write_text("old")
    make_all(files, make)
    make_all(files, make)
    assert made == [0, 1, 3, 4, 5]
    assert files[2].read_text() == "old"
    assert sorted(files[0].parent.iterdir()) == files  # no locks are left


@pytest.mark.usefixtures("_no_pause")
def test_several_share_the_work_and_all_wait_for_the_last_file(tmp_path: Path) -> None:
    files, made = files_in(tmp_path), list[tuple[int, int]]()
    met = threading.Barrier(2, timeout=20)

    def work(who: int) -> None:
        def make(i: int) -> None:
            if i < 2:
                met.wait()  # the first two are made at the same time
            made.append((who, i))
            files[i].write_text("x")

        make_all(files, make)
        assert all(file.exists() for file in files)

    threads = [threading.Thread(target=work, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(i for _, i in made) == list(range(6))
    assert {who for who, _ in made} == {0, 1}


@pytest.mark.usefixtures("_no_pause")
def test_the_file_of_a_process_that_was_killed_is_made_by_another(tmp_path: Path) -> None:
    files = files_in(tmp_path, 2)
    files[0].parent.mkdir()
    lock = files[0].with_suffix(".lock")
    code = (
        f"from filelock import FileLock; lock = FileLock({str(lock)!r}); lock.acquire(); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    assert claim.take(lock) is None
    made: list[int] = []

    def make(i: int) -> None:
        made.append(i)
        files[i].write_text("x")
        if i == 1:
            holder.kill()
            holder.wait()

    make_all(files, make)
    holder.stdin.close()
    holder.stdout.close()
    assert made == [1, 0]


def test_an_error_lets_go_of_the_file_and_the_next_call_goes_on(tmp_path: Path) -> None:
    files, made = files_in(tmp_path, 3), list[int]()

    def make(i: int) -> None:
        if i == 1 and not made.count(0) > 1:
            made.append(0)
            raise StorageError("disk full")
        made.append(i)
        files[i].write_text("x")

    with pytest.raises(StorageError, match="disk full"):
        make_all(files, make)
    assert [file.exists() for file in files] == [True, False, False]
    assert claim.take(files[1].with_suffix(".lock")) is not None
    make_all(files, make)
    assert all(file.exists() for file in files)


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("a file")
    with pytest.raises(StorageError, match="cannot make .*some"):
        make_all(files_in(tmp_path), lambda i: None)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_one_error_and_leaves_no_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(caches, "save_file", full)
    with pytest.raises(StorageError, match="cannot write .*(?i:no space left).*to go on"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(1000)}, {"side": 3})
    tensors, about = map_tensors(path)
    assert torch.equal(tensors["x"], torch.arange(1000))
    assert about == {"side": 3}
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes({"empty": b"", "cut": whole[:-50], "other": b"x" * 500}[damage])
    with pytest.raises(StorageError, match="a.safetensors is damaged .*delete it and run"):
        map_tensors(path)
