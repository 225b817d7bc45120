"""`bootpig-rt bench`: what it keeps when it is interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from bootpig_rt.benchmarks import suites
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult, load_results, save_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.benchmarks.way import Bench, Journal
from bootpig_rt.cli import bench
from bootpig_rt.cli.main import main


@dataclass(frozen=True)
class OneRow:
    """A suite that is over at once."""

    NAME: str
    HELP: str = "one row"

    def run(self, settings: Settings, journal: Journal) -> SuiteResult:
        return SuiteResult(self.NAME, (Row("a", "a", samples_ms=(1.0,)),))


class Interrupted(OneRow):
    """A suite during which somebody presses Ctrl-C."""

    def run(self, settings: Settings, journal: Journal) -> SuiteResult:
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
    words = ["--suite", "kernels", "--suite", "latency", "--suite", "quality", "--suite", "builds"]
    assert main(["bench", *words, "--smoke", "-o", str(output)]) != 0
    found = load_results(output)
    assert [result.suite for result in found] == ["kernels", "latency"]
    assert all(result.machine is not None for result in found)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.usefixtures("quick")
def test_results_are_printed_as_the_file_holds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "r.json"
    words = ["--suite", "kernels", "--suite", "latency", "--smoke"]
    assert main(["bench", *words, "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output.read_text())


@pytest.mark.usefixtures("quick")
def test_an_earlier_run_can_be_written_again(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert main(["bench", "--suite", "kernels", "--smoke", "-o", str(first)]) == 0
    assert main(["bench", "--from", str(first), "-o", str(second)]) == 0
    assert second.read_text() == first.read_text()


def ratios(*names: str, checks: tuple[Check, ...] = ()) -> SuiteResult:
    base = Row("base", "", samples_ms=(1.0,) * 10, ratio=Ratio("base", 1, 1, 1))
    rows = [replace(base, name=name, ratio=Ratio("base", 2, 1.99, 2.01)) for name in names]
    return SuiteResult("kernels", (base, *rows), checks=checks)


def test_a_check_that_is_wrong_is_an_exit_code_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    checks = (Check("pixels", 3.0, 0.5), Check("latents", 0.1, 0.5))
    save_results([ratios("a", checks=checks)], path)
    assert main(["bench", "--from", str(path)]) == 1
    seen = capsys.readouterr()
    assert "WRONG: pixels 3" in seen.out
    assert "error: 1 are wrong, so their times mean nothing: kernels: pixels" in seen.err
    assert main(["bench", "--from", str(path), "--against", str(path), "--json"]) == 1


def test_a_way_of_ours_that_failed_is_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    failed = Row("ours_known", "ours", status="failed: RuntimeError: no")
    missing = Row("published_graph", "published", status="not available: no GPU")
    save_results([SuiteResult("kernels", (*ratios("a").rows, failed, missing))], path)
    assert main(["bench", "--from", str(path)]) == 1
    assert "ours_known: failed" in capsys.readouterr().err


def test_fewer_rounds_than_an_interval_needs_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--rounds", "6"]) == 2
    assert "--rounds is 6, expected 10" in capsys.readouterr().err


def test_a_suite_of_the_cpu_is_refused_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--suite", "quality", "--device", "cuda"]) == 2
    assert "suite quality is of the packaged pair on a CPU" in capsys.readouterr().err


def test_a_row_that_is_gone_fails_the_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = tmp_path / "a.json", tmp_path / "b.json"
    save_results([ratios("a", "b")], before)
    save_results([ratios("a")], now)
    against = ["bench", "--from", str(now), "--against", str(before)]
    assert main(against) == 1
    shown = capsys.readouterr().out
    assert "GONE  kernels/b: 2 -> no such row" in shown
    assert "0 worse by over 5%, 1 gone" in shown
    assert main([*against, "--only", "a"]) == 0


def test_each_suite_is_compared_with_the_baseline_of_its_own_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _, row = ratios("a").rows
    other = replace(row, ratio=Ratio("published_bf16", 2, 1.99, 2.01))
    save_results([SuiteResult("baselines", (row,)), SuiteResult("full-size", (other,))], path)
    assert bench._baseline_of(path, "baselines", "cpu") == "base"
    assert bench._baseline_of(path, "full-size", "cpu") == "published_bf16"
    assert bench._baseline_of(path, "full-size", "cuda") == ""
    assert bench._baseline_of(path, "shares", "cpu") == ""
    assert bench._baseline_of(None, "baselines", "cpu") == ""


def test_ratios_that_scatter_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    base, row = ratios("a").rows
    save_results([SuiteResult("kernels", (base, replace(row, ratio=Ratio("base", 2, 1, 3))))], path)
    assert main(["bench", "--from", str(path), "--against", str(path)]) == 0
    assert "1 of 1 ratios scatter too much to see a fall of 5%" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["kernels", "builds"])
def test_an_only_that_matches_no_row_is_refused_with_the_names(
    suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--suite", suite, "--smoke", "--only", "owrs"]) == 2
    assert "--only owrs matches no row, expected the beginning of one of: " in (
        capsys.readouterr().err
    )


def test_an_only_of_the_longest_suite_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "rows", lambda *args, **options: pytest.fail("it was measured"))
    assert main(["bench", "--only", "owrs", "--json"]) == 2
    assert "--only owrs matches no row, expected the beginning of one of: published, " in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--smoke"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err
