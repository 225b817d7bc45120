"""Marked lines of the README and of the documentation, and what they are filled from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bootpig_rt.benchmarks import attention, figures, truth
from bootpig_rt.benchmarks.figures import fill, texts
from bootpig_rt.benchmarks.result import (
    LEAST_ROUNDS,
    Row,
    SuiteResult,
    Target,
    load_results,
    save_results,
)
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.errors import ParameterError

MARKED = "above\n<!-- figures:cpu -->\nold\n<!-- /figures -->\nbelow\n"


def test_the_marked_lines_are_those_of_the_result_files() -> None:
    for path in texts():
        text = path.read_text(encoding="utf-8")
        assert fill(text) == text, f"{path.name}: run python -m bootpig_rt.benchmarks.figures"


def test_what_lies_between_the_marks_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    ten = (10.0,) * 10
    strong = Row("published_bf16", "published way, bf16", "g", ten, ten,
                 Ratio("published_bf16", 1, 1, 1))  # fmt: skip
    ours = Row("ours_known", "ours, known", "g", ten, ten, Ratio("published_bf16", 2.5, 2.44, 2.56))
    weak = Row("torch_known", "torch", "g", ten, ten, Ratio("published_bf16", 1.5, 1.4, 1.6))
    rows = (strong, weak, ours)
    save_results([SuiteResult("baselines", rows)], tmp_path / "baselines-cpu.json")
    filled = fill(MARKED, tmp_path)
    assert filled.startswith("above\n<!-- figures:cpu -->\n|")
    assert filled.endswith("<!-- /figures -->\nbelow\n")
    assert "faster than the strongest published way" in filled
    assert "published way, bf16" in filled
    assert "| torch |" not in filled
    assert "| 2.5x (2.4 to 2.6) |" in filled
    assert "old" not in filled
    assert fill(filled, tmp_path) == filled


def test_the_table_of_cpus_has_a_block_for_each_size(tmp_path: Path) -> None:
    ten = (10.0,) * 10
    for file, suite in (("baselines-cpu", "baselines"), ("full-size-cpu", "full-size")):
        strong = Row("published_bf16", f"strong {suite}", "g", ten, ten,
                     Ratio("published_bf16", 1, 1, 1))  # fmt: skip
        ours = Row("ours_openvino_bf16_known", f"ours {suite}", "g", ten, ten,
                   Ratio("published_bf16", 3, 2.9, 3.1))  # fmt: skip
        made = Row("make pair", "init-pair", "made once", ten)
        result = SuiteResult(suite, (strong, ours, made), {"size_px": 96})
        save_results([result], tmp_path / f"{file}.json")
    lines = fill(MARKED, tmp_path).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [
        "**The small pair, 96 px**", "strong baselines", "ours baselines",
        "**Size of Stable Diffusion 2.1, 256 px**", "strong full-size", "ours full-size",
    ]  # fmt: skip


def test_targets_and_shares_are_filled_from_their_files(tmp_path: Path) -> None:
    target = Target("times", 3.0, 2.0)
    save_results([SuiteResult("full-size", (), targets=(target,))], tmp_path / "full-size-cpu.json")
    marked = MARKED.replace("figures:cpu", "figures:targets")
    assert "| times | at least 3 | 2 | missed |" in fill(marked, tmp_path)
    floor = Row("floor float32", "floor", "floor of a step", (2.0,))
    step = Row("onnxruntime", "step", "step in onnxruntime", (3.0,), values={"times_floor": 1.5})
    most = Row("onnxruntime Conv", "`Conv`", "step in onnxruntime", values={"share": 0.6})
    save_results([SuiteResult("shares", (floor, step, most))], tmp_path / "shares-cpu.json")
    filled = fill(MARKED.replace("figures:cpu", "figures:shares"), tmp_path)
    assert "| step in onnxruntime | 3 | 1.5 |" in filled
    assert "| `Conv` | 60% |" in filled


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    assert "Not measured yet" in fill(MARKED, tmp_path)


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(ParameterError, match="figures:cqu --> is no figure, expected one of cpu"):
        fill(MARKED.replace("cpu", "cqu"))


def test_a_stale_line_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(MARKED)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "texts", lambda: [tmp_path / "README.md"])
    assert figures.main(["--check"]) == 1


def kept() -> list[SuiteResult]:
    return [
        each for path in sorted(figures.RESULTS.glob("*-c*.json")) for each in load_results(path)
    ]


def test_every_ratio_that_is_kept_is_of_ten_rounds_or_more() -> None:
    for result in kept():
        for row in result.rows:
            assert row.ratio is None or len(row.samples_ms) >= LEAST_ROUNDS, row.name


def test_the_headline_divides_by_the_quickest_form_of_the_published_way() -> None:
    for result in kept():
        if result.suite != "baselines":
            continue
        for group in {row.group for row in result.rows}:
            rows = [row for row in result.rows if row.group == group]
            base = {row.ratio.to for row in rows if row.ratio is not None}
            published = [row for row in rows if row.name.startswith("published") and row.median_ms]
            if base and published:
                ratios = {row.name: row.ratio.value for row in published if row.ratio is not None}
                # Others may be quicker by less than the interval says.
                assert max(ratios.values()) < 1.05, ratios


def test_no_gate_allows_more_than_five_times_what_is_measured() -> None:
    assert truth.GATE <= 5
    assert attention.GATE <= 5
    for result in kept():
        largest: dict[float, float] = {}
        for check in result.checks:
            assert check.is_ok, check
            largest[check.limit] = max(largest.get(check.limit, 0.0), check.value or 0.0)
        for limit, value in largest.items():
            assert limit <= 5 * value * 1.001, f"{result.suite}: {limit} where {value} is measured"


def test_make_figures_trains_nothing(root: Path) -> None:
    asked = ["make", "-n", "figures", "VENV=.venv"]
    done = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True)
    assert "bench --suite quality" in done.stdout
    assert not re.search(r"bootpig-rt (train|synthesize)", done.stdout)
