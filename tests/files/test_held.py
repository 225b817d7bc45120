"""One process at a time writes into a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bootpig_rt.errors import StorageError
from bootpig_rt.files.held import held


def test_a_folder_that_is_held_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    message = r"another training is writing .*run'; wait for it, stop it, or choose another output"
    with (
        held(folder, "training"),
        pytest.raises(StorageError, match=message),
        held(folder, "training"),
    ):
        raise AssertionError("held twice")


def test_nothing_is_left_of_the_lock_and_what_was_written_stays(tmp_path: Path) -> None:
    with held(tmp_path / "empty", "build"):
        assert (tmp_path / "empty").is_dir()
    with held(tmp_path / "full", "build"):
        (tmp_path / "full" / "a").touch()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["full", "full/a"]


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bootpig_rt.files.held import held\n"
        "with held(Path(sys.argv[1]), 'build'): os._exit(9)"
    )
    folder = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == 9
    with held(folder, "build"):
        pass


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="cannot write the build in"),
        held(tmp_path / "file" / "out", "build"),
    ):
        raise AssertionError("made")
