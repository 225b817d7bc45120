"""`bootpig-rt tune`: what it lists, chooses and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig_rt.cli.generate import add_arguments
from bootpig_rt.cli.main import main
from bootpig_rt.cli.tune import options_of
from bootpig_rt.curve import Curve, CurvePoint, Measure, save_curve
from bootpig_rt.models.load import load_pair
from bootpig_rt.tuning import choose

ONE = Measure(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def mine(shallow_pair_folder: Path) -> str:
    """The fingerprint of the pair that curves are of."""
    return load_pair(shallow_pair_folder).fingerprint


@pytest.fixture
def curve(tmp_path: Path, mine: str) -> Path:
    """A curve of a tiny pair with two points."""
    quick: dict[str, str | int | float | tuple[float, float]] = {
        "num_inference_steps": 3,
        "guidance_interval": (0.0, 0.5),
        "approximation": "cache:2",
    }
    points = (
        CurvePoint("full", "full", mine, "tiny", {}, 1.0, ONE, {}, {}, 40.0, 1.0),
        CurvePoint("quick", "quick", mine, "tiny", quick, 0.2, ONE, {}, {}, 40.0, 0.9),
    )
    path = tmp_path / "tiny.curve.json"
    save_curve(Curve("tiny", mine, "full", 5, 10, {}, "", points), path)
    return path


def test_it_chooses_and_prints_the_options_of_generate(
    curve: Path, shallow_pair_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "tune",
        "--model",
        str(shallow_pair_folder),
        "--backend",
        "torch",
        "--curve",
        str(curve),
    ]
    assert main([*words, "--min-fidelity", "0.8"]) == 0
    told = capsys.readouterr().out
    assert "quick: quick" in told or "full: full" in told
    assert main([*words, "--min-fidelity", "0.8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["expected_ms"] > 0
    assert said["point"]["name"] in ("quick", "full")


def test_options_mean_what_settings_mean(curve: Path) -> None:
    import argparse

    from bootpig_rt.curve import load_curve

    found = load_curve(curve)
    planned = [(found.point("quick"), 1.0)]
    words = options_of(choose(found, planned, target_ms=2.0, min_fidelity=None))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words)
    assert (args.steps, args.guidance_interval, args.approximation) == (3, "0-0.5", "cache:2")


def test_it_lists_a_curve(curve: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--list", "--curve", str(curve)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["full", "quick"]
    assert main(["tune", "--list", "--curve", str(curve), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune"], "nothing to tune for"),
        (["tune", "--target-ms", "-1"], "target_ms is -1.0"),
        (["tune", "--measure", "--target-ms", "5"], "--measure chooses nothing"),
        (["tune", "--measure", "--rounds", "2"], "--rounds is 2, expected 10"),
        (["tune", "--measure", "--prompts", "0"], "--prompts is 0, expected 1..8"),
        (["tune", "--list", "--curve", "none.json"], "no curve none.json; measure one with"),
    ],
)
def test_what_it_cannot_do_is_refused_with_what_to_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_pair_without_graphs_cannot_be_measured(
    shallow_pair_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--measure", "--model", str(shallow_pair_folder)]) == 2
    assert "is no bundle, whose steps can be timed; build one with" in capsys.readouterr().err
