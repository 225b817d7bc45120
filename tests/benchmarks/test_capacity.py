"""Plans: machines for a load, from the prices of a measured cost model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.capacity import CostModel, Load, Prices, machines_for, plan
from bootpig_rt.benchmarks.cost_model import MEMORY_TERMS, TERMS, Configuration
from bootpig_rt.benchmarks.result import Row, SuiteResult, save_results
from bootpig_rt.cli.main import main
from bootpig_rt.errors import ParameterError

MS = {"call": 10.0, "step": 2.0, "image": 5.0, "entry": 1.0}


def result() -> SuiteResult:
    """A suite `scale` in which a call takes 10 ms, a step 2, an image 5 and an entry 1."""
    prices = {f"{term}_ms": MS.get(term, 0.0) for term in TERMS}
    memory = {f"{term}_bytes": 2.0**20 if term == "process" else 0.0 for term in MEMORY_TERMS}
    rows = (
        Row("prices", "", values=prices),
        Row("worst", "", values={"worst_error_share": 0.1}),
        Row("memory prices", "", values=memory),
        Row("memory worst", "", values={"worst_error_share": 0.2}),
    )
    return SuiteResult("scale", rows, {"pair": "p"})


@pytest.fixture
def scale(tmp_path: Path) -> Path:
    """A file of that suite."""
    save_results([result()], tmp_path / "scale.json")
    return tmp_path / "scale.json"


@pytest.mark.parametrize(
    ("load", "each_ms", "utilisation", "machines"),
    [(0, 250, 0.7, 0), (60, 700, 0.7, 1), (60, 701, 0.7, 2), (6000, 250, 0.5, 50)],
)
def test_machines_cover_the_load(
    load: float, each_ms: float, utilisation: float, machines: int
) -> None:
    assert machines_for(load, each_ms, utilisation=utilisation) == machines


def test_new_subjects_pay_for_their_pass_and_the_error_is_the_margin() -> None:
    model = CostModel.of([result()])
    picture = Configuration(steps=20, batch=2, references=3, entries=20)
    found = plan(model, Load(6000, picture, new_subjects=0.5, utilisation=0.5))
    assert found.ms_a_call == pytest.approx(10 + 20 * 2)
    assert found.ms_a_new_subject == pytest.approx(3 * 5 + 60 * 1)
    assert found.ms_a_picture == pytest.approx(50 / 2 + 0.5 * 75)
    assert (found.machines, found.machines_at_worst) == (13, 14)
    assert (found.bytes_a_process, found.memory_error) == (2**20, 0.2)


def test_a_model_without_memory_plans_time_alone() -> None:
    model = replace(CostModel.of([result()]), memory=None)
    assert plan(model, Load(60, Configuration())).bytes_a_process is None


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"pictures_per_minute": -1.0}, "pictures a minute, expected 0 or more"),
        ({"pictures_per_minute": float("nan")}, "pictures a minute, expected 0 or more"),
        ({"new_subjects": 1.5}, "share of 0 to 1"),
        ({"utilisation": 0.0}, "expected above 0 and up to 1"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(numbers: dict[str, float], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        replace(Load(60, Configuration()), **numbers)  # type: ignore[arg-type]


def test_results_without_the_model_are_refused() -> None:
    with pytest.raises(ParameterError, match="needs results of suite scale, got kernels"):
        CostModel.of([SuiteResult("kernels", ())])
    old = SuiteResult("scale", (Row("prices", "", values={"call_ms": 1.0}),))
    with pytest.raises(ParameterError, match="has the prices call_ms, expected call_ms, step_ms"):
        CostModel.of([old])


def test_the_command_prints_machines(scale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "6000", "--from", str(scale), "--steps", "20", "--batch", "2"]
    words += ["--references", "3", "--reference-schedule", "exact", "--new-subjects", "0.5"]
    assert main([*words, "--utilisation", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "62.5 ms a picture, +-10%" in printed
    assert "13 machines for 6,000 pictures a minute at 50% utilisation, 14 if" in printed
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ms_a_picture"] == 62.5


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--reference-schedule", "clean+window:0-0.5"], "leave the window out"),
        (["--from", "nothing.json"], "no file nothing.json"),
    ],
)
def test_bad_options_are_one_line(
    scale: Path, capsys: pytest.CaptureFixture[str], words: list[str], error: str
) -> None:
    assert main(["plan", "60", "--from", str(scale), *words]) == 2
    assert error in capsys.readouterr().err


def test_prices_predict_a_sum() -> None:
    assert Prices((1.0,) * len(TERMS), 0.0).predict(Configuration(steps=1).counts) == 13
