"""The fuzzer itself: some hundred inputs of each kind, and that it sees what it is there to see."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

IN_PROCESS = ("picture", "marks", "subject", "form", "body", "settings")


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """A function that runs a module of the fuzzer, or some lines with its names, to its end."""

    def start(*words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return start


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_nothing_is_found_among_some_inputs_of_each_kind(
    run: Run, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "now").mkdir()
    ran = run("-m", "tests.fuzz.worker", kind, "19", "0", "80", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    piece = json.loads(ran.stdout)
    assert piece["findings"] == []
    assert sum(piece["outcomes"].values()) == 80
    assert len(piece["outcomes"]) > 1  # some are read, some are refused


@pytest.mark.slow
def test_nothing_is_found_among_some_requests(run: Run, tmp_path: Path) -> None:
    ran = run("-m", "tests.fuzz.asking", "19", "0", "60", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    piece = json.loads(ran.stdout)
    assert piece["findings"] == []
    assert len(piece["outcomes"]) > 5


@pytest.mark.slow
def test_nothing_is_found_in_ten_thousand_inputs(run: Run, tmp_path: Path) -> None:
    words = ("--inputs", "10000", "--work", str(tmp_path / "fuzz"), "--jobs", "1")
    ran = run("-m", "tests.fuzz", *words, timeout_s=1200.0)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 findings" in ran.stdout
    again = run("-m", "tests.fuzz", *words)  # all of it was done
    assert again.stdout == ran.stdout


FAULTS = {
    "an error of another kind": ("raise KeyError('x')", "KeyError at "),
    "a hang": ("while True: pass", "Hang at "),
    "memory": ("b'a' * (400 << 20)", "memory "),
    "a warning": ("import warnings; warnings.warn('look')", "a warning "),
    "an open file": ("open('/dev/null')", "a warning "),
    "what stays": ("kept.append(b'a' * (16 << 20))", "growth "),
    "a long message": ("raise ImageError('a' * 5000)", "Wrong at "),
}

SCRIPT = """
import sys
from pathlib import Path
from tests.fuzz import checks, worker
from bootpig_rt.errors import ImageError

kept = []

def load_image(data, **_):
    {fault}
    raise ImageError("no picture")

checks.load_image = load_image
worker.MAX_CPU_S = 0.5
worker.prepare_process()
piece = worker.run_piece("picture", 1, 0, 6, Path(sys.argv[1]))
print(sorted({{one.what for one in piece.findings}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_what_should_not_be_is_found(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "now").mkdir()
    fault, told = FAULTS[name]
    ran = run("-c", SCRIPT.format(fault=fault), str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    # On a busy machine what takes memory may take too long as well.
    assert any(what.startswith(told) for what in ast.literal_eval(ran.stdout)), ran.stdout


CRASH = """
import ctypes, sys
from pathlib import Path
from tests.fuzz import checks, worker

def load_image(data, **_):
    ctypes.string_at(0)

checks.load_image = load_image
worker.run_piece("picture", 1, 7, 9, Path(sys.argv[1]))
"""


def test_the_input_that_ended_a_process_is_known(run: Run, tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    assert run("-c", CRASH, str(tmp_path)).returncode < 0
    look = "import sys; from pathlib import Path; from tests.fuzz.worker import read_now; "
    ran = run("-c", look + f"print(read_now(Path({str(tmp_path / 'now/picture-1-7-9')!r}))[0])")
    assert ran.stdout.strip() == "7", ran.stderr


SAME = """
from pathlib import Path
from tests.fuzz.kinds import KINDS, input_of
import hashlib

for kind in sorted(set(KINDS) - {"request"}):
    digest = hashlib.sha256(b"".join(input_of(kind, 3, n, Path("none")) for n in range(30)))
    print(kind, digest.hexdigest())
"""


def test_the_same_numbers_draw_the_same_inputs(run: Run) -> None:
    first, second = run("-c", SAME), run("-c", SAME)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert len({line.split()[1] for line in first.stdout.splitlines()}) == len(IN_PROCESS)


def test_chunks_have_right_checksums(run: Run) -> None:
    """Else a reader of PNG would refuse all of them at the first chunk."""
    script = """
from tests.fuzz.corpus import pictures
from tests.fuzz.png import chunk_bytes, chunks_of, png_of
for data in pictures()[:3]:
    assert png_of(chunks_of(data)) == data
print(int.from_bytes(chunk_bytes(b"teSt", b"abc")[-4:]))
"""
    ran = run("-c", script)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == zlib.crc32(b"teStabc")
