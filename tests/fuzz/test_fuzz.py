"""The fuzzer itself: some hundred inputs of each kind, and that it sees what it is there to see."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

IN_PROCESS = ("picture", "marks", "subject", "form", "body", "settings")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that runs a module of the fuzzer, or some lines with its names, to its end."""
    folder = tmp_path_factory.mktemp("fuzz")

    def start(*words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return start


EVERY_KIND = """
import contextlib, runpy, sys

work, *kinds = sys.argv[1:]
for kind in kinds:
    sys.argv = ["worker", kind, "19", "0", "80", work]
    with contextlib.suppress(SystemExit):
        runpy.run_module("tests.fuzz.worker", run_name="__main__")
    print(flush=True)
"""


def test_nothing_is_found_among_some_inputs_of_each_kind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    ran = run("-c", EVERY_KIND, str(tmp_path), *IN_PROCESS)
    assert ran.returncode == 0, ran.stderr
    pieces = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [piece["kind"] for piece in pieces] == list(IN_PROCESS)
    for piece in pieces:
        assert piece["findings"] == [], piece["kind"]
        assert sum(piece["outcomes"].values()) == 80, piece["kind"]
        assert len(piece["outcomes"]) > 1, piece["kind"]  # some are read, some are refused


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
import ctypes, os, sys
from pathlib import Path
from tests.fuzz import checks, worker

def load_image(data, **_):
    ctypes.string_at(0)

checks.load_image = load_image
child = os.fork()
if not child:
    worker.run_piece("picture", 1, 7, 9, Path(sys.argv[1]))
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
print(worker.read_now(worker.now_path(Path(sys.argv[1]), "picture-1-7-9"))[0])
"""


def test_the_input_that_ended_a_process_is_known(run: Run, tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    ran = run("-c", CRASH, str(tmp_path))
    assert ran.stdout.split() == [str(int(signal.SIGSEGV)), "7"], ran.stderr


SAME = """
from pathlib import Path
from tests.fuzz.kinds import KINDS, input_of
import hashlib

for kind in sorted(set(KINDS) - {"request"}):
    digest = hashlib.sha256(b"".join(input_of(kind, 3, n, Path("none")) for n in range(12)))
    print(kind, digest.hexdigest())
"""

CHUNKS = """
from tests.fuzz.corpus import pictures
from tests.fuzz.png import chunk_bytes, chunks_of, png_of
for data in pictures()[:3]:
    assert png_of(chunks_of(data)) == data
print(int.from_bytes(chunk_bytes(b"teSt", b"abc")[-4:]))
"""


@pytest.fixture(scope="module")
def first_lines(run: Run) -> list[str]:
    """What the lines above say."""
    ran = run("-c", SAME + CHUNKS)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_same_numbers_draw_the_same_inputs(run: Run, first_lines: list[str]) -> None:
    *first, _ = first_lines
    assert first == run("-c", SAME).stdout.splitlines()
    assert len({line.split()[1] for line in first}) == len(IN_PROCESS)


def test_chunks_have_right_checksums(first_lines: list[str]) -> None:
    """Else a reader of PNG would refuse all of them at the first chunk."""
    assert int(first_lines[-1]) == zlib.crc32(b"teStabc")
