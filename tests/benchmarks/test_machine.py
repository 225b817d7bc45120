"""What a run says about the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.machine import Watch, commit_of
from bootpig_rt.benchmarks.stats import spread

QUIET, NOISY = (10.0, 10.1, 9.9, 10.0, 10.05), (10.0, 14.0, 8.0, 12.0, 9.0)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without noise of its own or other processes."""
    monkeypatch.setattr(machine, "_noise", lambda: 0.01)
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)


def measured(*samples: tuple[float, ...]) -> machine.Machine:
    return Watch(1).machine([spread(each) for each in samples if len(each) > 3])


@pytest.mark.usefixtures("steady")
def test_rows_that_scatter_make_a_machine_busy() -> None:
    assert not measured(QUIET, QUIET).is_busy
    assert measured(QUIET, QUIET).noise == 0.01
    found = measured(QUIET, NOISY, NOISY)
    assert found.is_busy
    assert found.noise == pytest.approx(0.15)  # half of 12 - 9, over 10


@pytest.mark.usefixtures("steady")
def test_one_odd_row_and_rows_of_few_samples_do_not() -> None:
    assert not measured(QUIET, QUIET, NOISY).is_busy
    assert not measured((1.0, 9.0), (1.0, 9.0)).is_busy


def test_noise_after_the_last_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    noises = iter((0.01, 0.3))
    monkeypatch.setattr(machine, "_noise", lambda: next(noises))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)
    assert measured(QUIET).is_busy


def test_other_processes_make_a_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_noise", lambda: 0.01)
    # Of everyone and of ours: 1000 s, in a moment, of which none were ours.
    seconds = iter(((0.0, 0.0), (1000.0, 0.0)))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(seconds))
    found = measured(QUIET)
    assert found.busy_share == 1
    assert found.is_busy


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_results_and_what_is_made_of_them_do_not_make_a_checkout_dirty(tmp_path: Path) -> None:
    written = ("benchmarks/results/a.json", "docs/results/plot.svg", "README.md")
    for name in (*written, "code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    clean = commit_of(tmp_path)
    assert len(clean) == 12
    for name in written:
        (tmp_path / name).write_text("new")
    (tmp_path / "notes.txt").write_text("not known to git")
    assert commit_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("new")
    assert commit_of(tmp_path) == f"{clean}-dirty"


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2", None),
        ("fpu avx512_bf16 sse", "avx512_bf16"),
        ("amx_bf16 avx512_bf16", "amx_bf16"),
    ],
)
def test_the_flag_of_a_processor_with_bfloat16_is_found(
    flags: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: flags)
    assert machine.bf16_flag() == expected


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("sse avx2 avx512f avx512_bf16", "avx2, avx512f, avx512_bf16; no AMX here"),
        ("avx2 amx_tile amx_bf16", "avx2, amx_tile, amx_bf16"),
    ],
)
def test_a_result_says_what_the_processor_multiplies_with(
    flags: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: flags if field == "flags" else "")
    assert measured(QUIET).arithmetic == said
