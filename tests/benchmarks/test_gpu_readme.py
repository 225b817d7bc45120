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
    pictures[0] |= {"values": {"step_ms": 38.5}}
    pictures[2] |= {"values": {"step_ms": 8.04}}
    pictures.append(row("picture", "r1-b4", "shared_rows_warm", 600.0, "ours, known subject"))
    profile = [
        row("profile", "r1-b1", "published", None)
        | {"values": {"busy_ms": 20.0, "kernels": 3000.0}},
        row("profile", "r1-b1", "shared_rows_warm", None)
        | {"values": {"busy_ms": 7.96, "kernels": 600.0}},
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
    targets = [target("faster", 5.5, "met"), target("kernel", None, "not measured")]
    found = {"rows": pictures + attention + profile, "targets": targets}
    (tmp_path / readme_tables.MEASURED).write_text(json.dumps(found))
    return tmp_path


def test_rungs_are_compared_with_the_published_way(folder: Path) -> None:
    lines = readme_tables.pictures(folder).splitlines()
    assert lines.count("| published way | 1000 ms |  | 1.00x |") == 2
    assert lines.count("| ours | 400 ms | 250 ms | 4.00x |") == 2
    assert not any("compiled" in line for line in lines)  # it was not measured


def test_what_the_host_costs_is_told(folder: Path) -> None:
    told = readme_tables.host(folder)
    assert "busy for 20.0 of 38.5 ms" in told
    assert "launches 3000\nkernels" in told
    assert "busy for 8.0 of 8.0 ms" in told
    assert "Four pictures of a known subject at once take 150 ms each" in told


def test_the_best_stock_composition_is_no_bound(folder: Path) -> None:
    lines = readme_tables.attention(folder).splitlines()
    assert lines[2].startswith("| 512 px, 1 reference | 1.50 | 3.00, 2.00x | 1.80, 1.20x: ")
    assert lines[3].startswith("| 512 px, 4 references, 4 pictures | 10.00 | 25.00, 2.50x | 20.00,")


def test_a_target_that_was_not_measured_is_left_out(folder: Path) -> None:
    lines = readme_tables.targets(folder).splitlines()
    assert lines[2:] == ["| faster | at least 5 x | 5.5 x | met |"]


def test_the_run_that_is_kept_was_whole_and_right() -> None:
    found = _kept()
    assert found["kind"] == "bench-gpu"
    assert found["is_finished"]
    assert not found["is_rehearsal"]
    assert {row["status"] for row in found["rows"]}.isdisjoint({"wrong", "failed"})


def test_the_ablation_page_is_made_from_the_run() -> None:
    page = (ROOT / RESULTS / "gpu-ablation.md").read_text(encoding="utf-8")
    assert page == markdown_of(_kept())


def test_the_plot_ends_with_ours(folder: Path) -> None:
    drawn = readme_tables.plot(folder)
    assert drawn.index("published way") < drawn.index("ours") < drawn.index("text to image w")
    assert "250 ms" in drawn
    assert "200 ms" in drawn


def _kept() -> Any:
    return json.loads((ROOT / RESULTS / readme_tables.MEASURED).read_text(encoding="utf-8"))
