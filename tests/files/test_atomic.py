from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import StorageError
from bootpig_rt.files.atomic import atomic_write, atomic_write_bytes, atomic_write_text


def _raise(number: int) -> Callable[..., Any]:
    def raiser(*_args: object, **_kwargs: object) -> Any:
        raise OSError(number, os.strerror(number), "some-temporary-name")

    return raiser


def test_new_file_appears_with_its_contents_and_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write_text(path, "one\r\ntwo é")
    assert path.read_bytes() == "one\r\ntwo é".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "plain"]


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_secret_is_for_its_owner_alone_from_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with atomic_write(path, new_mode=0o600) as stream:
        (temporary,) = tmp_path.iterdir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        stream.write(b"token")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_symbolic_link_stays_a_link_to_the_new_contents(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_error_in_the_block_leaves_the_old_file_and_no_other(
    tmp_path: Path, exception: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise exception

    with pytest.raises(exception):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("call", "number", "fix"),
    [
        ("fsync", errno.ENOSPC, "free some space"),
        ("replace", errno.ENOSPC, "free some space"),
        ("fsync", errno.EDQUOT, "free some space"),
        ("open", errno.EROFS, "not read-only"),
        ("open", errno.EACCES, "may write to"),
        ("replace", errno.EPERM, "may write to"),
    ],
)
def test_system_error_leaves_the_old_file_and_says_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, fix: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, _raise(number))
    with pytest.raises(StorageError) as caught:
        atomic_write_bytes(path, b"new")
    monkeypatch.undo()
    message = str(caught.value)
    assert fix in message
    assert repr(str(path)) in message
    assert "temporary-name" not in message
    assert "\n" not in message
    assert caught.value.errno == number
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("folder", "not a plain file"),
        ("missing/a", "check the path"),
        ("file/a", "one of its parts is a file"),
        ("pipe", "not a plain file"),
        ("x" * 300, "too long"),
    ],
)
def test_path_that_cannot_be_a_file_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError, match=expected):
        atomic_write_bytes(tmp_path / name, b"x")
    assert sorted(os.listdir(tmp_path)) == before


def test_temporary_name_of_a_longest_name_fits(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    atomic_write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anyway")
def test_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match="may write to"):
            atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        tmp_path.chmod(0o755)


_ON_A_FULL_DISK = """
import json, os, subprocess, sys
from PIL import Image
from bootpig_rt.errors import StorageError
from bootpig_rt.images.png import save_png
folder = sys.argv[1]
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "tmpfs", folder], check=True)
def attempt(image):
    try:
        save_png(image, folder + "/out.png", {"seed": 1})
    except StorageError as error:
        return str(error)
    return "no error"
mount("size=64k")
small = Image.new("RGB", (16, 16))
large = Image.effect_noise((512, 512), 90)
first = attempt(small)
before = open(folder + "/out.png", "rb").read()
full = attempt(large)
kept = open(folder + "/out.png", "rb").read() == before
mount("remount,ro")
print(json.dumps([first, full, kept, attempt(small), os.listdir(folder)]))
"""


def test_full_and_read_only_disks_leave_the_old_picture(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # A mount namespace of its own: no root needed where the system allows it, nothing to clean up.
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets no test mount a small disk")
    run = subprocess.run(
        [*unshare, sys.executable, "-c", _ON_A_FULL_DISK, str(disk)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, full, kept, read_only, names = json.loads(run.stdout)
    assert first == "no error"
    assert "no space left on device; free some space or write to another disk" in full
    assert kept
    assert "write to a folder that is not read-only" in read_only
    assert names == ["out.png"]
