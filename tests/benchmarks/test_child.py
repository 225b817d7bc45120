"""Commands in a process of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.errors import BootPIGError

_MEBI = 2**20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory")


@needs_linux
def test_the_memory_of_a_child_is_not_that_of_the_process_that_started_it() -> None:
    ballast = np.ones(400 * _MEBI // 8)
    small = run_child(["-c", ""]).peak_bytes
    assert ballast[-1] == 1
    assert small is not None
    assert small < 60 * _MEBI


@needs_linux
def test_the_memory_of_a_child_is_its_largest_not_its_last() -> None:
    peak = run_child(["-c", "x = bytearray(200 << 20); del x"]).peak_bytes
    assert peak is not None
    assert 200 * _MEBI < peak < 260 * _MEBI


@needs_linux
def test_of_a_child_that_maps_a_file_its_own_memory_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(200 * _MEBI))
    code = (
        "import mmap, sys, time; own = bytearray(100 << 20); file = open(sys.argv[1], 'rb'); "
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(mapped[::4096]); "
        "time.sleep(.5)"
    )
    run = run_child(["-c", code, str(tmp_path / "file")])
    assert run.peak_bytes is not None
    assert run.own_bytes is not None
    assert 300 * _MEBI < run.peak_bytes
    assert 100 * _MEBI < run.own_bytes < 160 * _MEBI


def test_a_child_gets_its_words_and_its_environment() -> None:
    code = "import os, sys; assert sys.argv == ['-c', 'a', 'b'] and os.environ['WORD'] == 'c'"
    assert run_child(["-c", code, "a", "b"], environment={"WORD": "c"}).wall_ms > 0


def test_a_module_runs_as_main() -> None:
    assert run_child(["-m", "bootpig_rt", "--version"]).wall_ms > 0


def test_a_child_that_fails_is_an_error_with_its_last_line() -> None:
    with pytest.raises(BootPIGError, match=r"ended with code 3"):
        run_child(["-c", "raise SystemExit(3)"])
    with pytest.raises(BootPIGError, match=r"code 1: ValueError: no"):
        run_child(["-c", "raise ValueError('no')"])


@needs_linux
def test_a_child_that_ends_without_a_word_has_no_memory() -> None:
    assert run_child(["-c", "import os; os._exit(0)"]).peak_bytes is None


def test_what_a_child_writes_is_kept() -> None:
    assert run_child(["-c", "print('{}')"]).output == "{}\n"


def test_a_child_that_takes_too_long_is_ended() -> None:
    with pytest.raises(BootPIGError, match="was ended after 1 s, its limit"):
        run_child(["-c", "import time; time.sleep(60)"], timeout_s=1)
