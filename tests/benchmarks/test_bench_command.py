"""`bootpig-rt bench`: what it keeps when it is interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootpig_rt.benchmarks import suites
from bootpig_rt.benchmarks.result import Row, SuiteResult, load_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.cli import main


@dataclass(frozen=True)
class OneRow:
    """A suite that is over at once."""

    NAME: str
    HELP: str = "one row"

    def run(self, settings: Settings) -> SuiteResult:
        return SuiteResult(self.NAME, (Row("a", "a", samples_ms=(1.0,)),))


class Interrupted(OneRow):
    """A suite during which somebody presses Ctrl-C."""

    def run(self, settings: Settings) -> SuiteResult:
        raise KeyboardInterrupt


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites that are over at once; `quality` is interrupted."""
    monkeypatch.setattr(
        suites, "load_suite", lambda name: (Interrupted if name == "quality" else OneRow)(name)
    )


@pytest.mark.usefixtures("quick")
def test_an_interruption_loses_only_the_suite_that_runs(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    words = ["--suite", "kernels", "--suite", "scale", "--suite", "quality", "--suite", "builds"]
    assert main(["bench", *words, "--smoke", "-o", str(output)]) != 0
    found = load_results(output)
    assert [result.suite for result in found] == ["kernels", "scale"]
    assert all(result.machine is not None for result in found)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.usefixtures("quick")
def test_results_are_printed_as_the_file_holds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "r.json"
    words = ["--suite", "kernels", "--suite", "scale", "--smoke"]
    assert main(["bench", *words, "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output.read_text())


@pytest.mark.usefixtures("quick")
def test_an_earlier_run_can_be_written_again(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert main(["bench", "--suite", "kernels", "--smoke", "-o", str(first)]) == 0
    assert main(["bench", "--from", str(first), "-o", str(second)]) == 0
    assert second.read_text() == first.read_text()
