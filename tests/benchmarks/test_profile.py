"""Profiles of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.profile import profile_picture
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.pipeline import default_model


@pytest.mark.slow
def test_a_profile_holds_two_traces_and_the_largest_operators_first(tmp_path: Path) -> None:
    result = profile_picture(Settings(default_model(), threads=1), tmp_path)
    assert result.suite == "profile"
    groups = dict.fromkeys(row.group for row in result.rows)
    assert list(groups) == ["step in ONNX Runtime", "picture in torch"]
    for group in groups:
        shares = [row.values["share"] or 0.0 for row in result.rows if row.group == group]
        assert len(shares) >= 5
        assert shares == sorted(shares, reverse=True)
        assert 0.5 < sum(shares) <= 1.001
    convolutions = {row.label: row.values["calls"] for row in result.rows}["Conv"]
    # Of one step, whatever the number of steps; each of two upsamplers is four convolutions.
    assert convolutions == 36 + 2 * 3
    table = (tmp_path / "operators.md").read_text()
    assert all(f"| {row.label} |" in table for row in result.rows)
    nodes = json.loads((tmp_path / "onnxruntime.json").read_text())
    assert any(event.get("cat") == "Node" for event in nodes)
    assert json.loads((tmp_path / "torch.json").read_text())["traceEvents"]
