"""The README's tables of what a GPU measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.benchmarks.gpu import readme_tables
from bootpig_rt.benchmarks.gpu.ablation_markdown import markdown_of
from bootpig_rt.benchmarks.readme import RESULTS, ROOT


def row(section: str, case: str, way: str, ms: float | None, label: str = "") -> dict[str, Any]:
    return {"section": section, "case": case, "way": way, "label": label or way, "ms": ms}


def target(name: str, measured: float | None, verdict: str) -> dict[str, Any]:
    wanted = {"name": name, "wanted": "at least 5 x", "unit": "x"}
    return wanted | {"measured": measured, "verdict": verdict}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = [
        row("picture", case, way, ms, label)
        for case in ("r1-b1", "r4-b1")
        for way, ms, label in (
            ("published", 1000.0, "published way"),
            ("shared_rows_cold", 400.0, "ours, new subject"),
            ("shared_rows_warm", 250.0, "ours, known subject"),
            ("compile_warm", None, "compiled, known subject"),
            ("text_to_image", 200.0, "plain"),
        )
    ]
    attention = [
        row("attention", "512px-r1-b3", "fused", 1.5),
        row("attention", "512px-r1-b3", "published", 3.0),
        row("attention", "512px-r1-b3", "concat_sdpa", 2.4),
        row("attention", "512px-r1-b3", "lse_merge_cudnn", 1.8),
        row("attention", "512px-r1-b3", "beside_sdpa_cudnn", 1.0),
        row("attention", "512px-r4-b12", "fused", 10.0),
        row("attention", "512px-r4-b12", "published", 25.0),
        row("attention", "512px-r4-b12", "concat_sdpa", 20.0),
    ]
    first = {"rows": pictures + attention, "targets": [target("faster", 4.0, "not met")]}
    later = {
        "rows": pictures,
        "targets": [target("faster", 5.5, "met"), target("kernel", None, "not measured")],
    }
    (tmp_path / readme_tables.LADDER).write_text(json.dumps(first))
    (tmp_path / readme_tables.NORMS).write_text(json.dumps(later))
    return tmp_path


def test_rungs_are_compared_with_the_published_way_of_their_run(folder: Path) -> None:
    lines = readme_tables.pictures(folder).splitlines()
    assert lines.count("| published way | 1000 ms |  | 1.00x |") == 3
    assert lines.count("| ours | 400 ms | 250 ms | 4.00x |") == 3
    assert not any("compiled" in line for line in lines)  # it was not measured
    assert sum("second run" in line for line in lines) == 1


def test_the_best_stock_composition_is_no_bound(folder: Path) -> None:
    lines = readme_tables.attention(folder).splitlines()
    assert lines[2].startswith("| 512 px, 1 reference | 1.50 | 3.00, 2.00x | 1.80, 1.20x: ")
    assert lines[3].startswith("| 512 px, 4 references, 4 pictures | 10.00 | 25.00, 2.50x | 20.00,")


def test_the_later_run_answers_a_target(folder: Path) -> None:
    lines = readme_tables.targets(folder).splitlines()
    assert lines[2:] == ["| faster | at least 5 x | 5.5 x | met |"]


@pytest.mark.parametrize("name", [readme_tables.LADDER, readme_tables.NORMS])
def test_the_runs_that_are_kept_were_whole_and_right(name: str) -> None:
    found = json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8"))
    assert found["kind"] == "bench-gpu"
    assert found["is_finished"]
    assert not found["is_rehearsal"]
    assert {row["status"] for row in found["rows"]}.isdisjoint({"wrong", "failed"})


@pytest.mark.parametrize(
    ("name", "table"),
    [(readme_tables.LADDER, "gpu-ablation.md"), (readme_tables.NORMS, "gpu-ablation-norms.md")],
)
def test_the_ablation_pages_are_made_from_the_runs(name: str, table: str) -> None:
    found = json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8"))
    assert (ROOT / RESULTS / table).read_text(encoding="utf-8") == markdown_of(found)


def test_the_plot_ends_with_the_later_run(folder: Path) -> None:
    drawn = readme_tables.plot(folder)
    assert (
        drawn.index("published way") < drawn.index("norms fused") < drawn.index("text to image w")
    )
    assert "250 ms" in drawn
    assert "200 ms" in drawn
