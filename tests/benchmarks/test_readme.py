"""The figures of the README are those of the files in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.gpu import readme_tables
from bootpig_rt.benchmarks.readme import GPU_PLOT, PLOT, RESULTS, ROOT, fill, plot
from bootpig_rt.benchmarks.result import Row, SuiteResult, save_results
from bootpig_rt.errors import ParameterError


def test_the_readme_says_what_the_result_files_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == text.count("<!-- /figures -->") >= 12
    assert fill(text) == text


def test_the_plot_is_drawn_from_the_same_files() -> None:
    assert (ROOT / PLOT).read_text(encoding="utf-8") == plot()
    assert (ROOT / GPU_PLOT).read_text(encoding="utf-8") == readme_tables.plot(ROOT / RESULTS)


def test_a_block_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(ParameterError, match="figures 'speed', expected one of baselines"):
        fill("<!-- figures: speed -->\n<!-- /figures -->\n")


def test_text_outside_of_the_blocks_stays(tmp_path: Path) -> None:
    assert fill("a\n\nb | c\n", tmp_path) == "a\n\nb | c\n"


def test_what_was_not_measured_yet_is_said(tmp_path: Path) -> None:
    text = "<!-- figures: costs -->\n<!-- /figures -->\n"
    assert "Not measured yet: `make figures`" in fill(text, tmp_path)


def test_the_errors_of_the_golden_tensors_are_the_worst_of_all_files(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    lines = [
        {"file": "a", "errors": {"noise": 1e-5, "end to end": 2e-4}},
        {"file": "b", "errors": {"noise": 3e-6, "end to end": 5.6e-4}},
    ]
    (results / "golden-cpu.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = fill("<!-- figures: golden -->\n<!-- /figures -->\n", tmp_path)
    assert "at most 1.0e-05 relative error within a step and 5.6e-04 end to end" in found


def test_a_change_of_quality_is_shown_with_its_sign_and_interval(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    rates = {"identity": 0.9, "identity_low": 0.8, "identity_high": 1.0, "scene": 1.0}
    change = {"identity_change": -0.01, "identity_change_low": -0.03, "identity_change_high": 0.0}
    rows = (
        Row("a", "base", samples_ms=(4.0,), values=rates),
        Row("b", "student", samples_ms=(2.0,), values=rates | change),
    )
    save_results([SuiteResult("quality", rows)], results / "quality-cpu.json")
    found = fill("<!-- figures: quality -->\n<!-- /figures -->\n", tmp_path)
    assert "| student | 2 |  | 0.90 (0.80 to 1.00) | -1.0 (-3.0 to +0.0) |" in found
    assert "| base | 4 |  | 0.90 (0.80 to 1.00) |  |" in found


def test_the_largest_costs_of_a_step_are_five_of_the_first_runtime(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    values: dict[str, float | None] = {"share": 0.2, "self_ms": 1.5, "calls": 7.0}
    rows = [Row(f"{group}/{n}", f"Op{n}", group, values=values) for group in "ab" for n in range(6)]
    save_results([SuiteResult("profile", tuple(rows))], results / "profile-cpu.json")
    found = fill("<!-- figures: costs -->\n<!-- /figures -->\n", tmp_path)
    assert found.count("| Op") == 5
    assert "| Op4 | 20% | 1.50 | 7 |" in found
