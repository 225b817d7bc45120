"""Drawing goes on where it stopped, in parts or at once, and never mixes settings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.images.picture import read_parameters, save_png
from bootpig_rt.training.evaluation.dreambench.drawing import read_runs
from bootpig_rt.training.evaluation.dreambench.settings import SETTINGS_FILE, read_settings

pytestmark = pytest.mark.usefixtures("one_pipeline")


@pytest.fixture
def words(bench_folder: Path, tiny_bundle_folder: Path) -> list[str]:
    """A run of 3 subjects, 2 prompts and 2 pictures of 2 steps each, without the folder."""
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--steps", "2"]
    return [*words, "--model", str(tiny_bundle_folder), "--prompts", "2", "--seeds", "2", "-o"]


FEW = ("--prompts", "1", "--seeds", "1")
"""The last one of an option counts: a picture of each subject."""


def pictures(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.glob("pictures/*/*.png"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_pictures_say_what_they_are(words: list[str], tmp_path: Path) -> None:
    assert main([*words, str(tmp_path), "--part", "1/1"]) == 0
    parameters = read_parameters(tmp_path / "pictures" / "dog" / "01-1.png")
    assert parameters is not None
    assert parameters["prompt"] == "a dog in garb 1"
    assert parameters["reference_prompt"] == "a photo of a dog"
    assert parameters["num_inference_steps"] == 2
    assert len(pictures(tmp_path)) == 12
    settings = read_settings(tmp_path)
    assert settings is not None
    assert (settings.references, settings.steps, settings.per_prompt) == ("all", 2, 2)
    assert [run.pictures for run in read_runs(tmp_path)] == [12]


def test_a_stopped_run_goes_on_and_draws_what_a_whole_one_does(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bootpig_rt.training.evaluation.dreambench import drawing

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = [*words[:-1], "--seeds", "1", words[-1]]
    assert main([*words, str(whole), "--part", "1/1"]) == 0
    saved: list[Path] = []

    def save_two(image: Image.Image, path: Path, *args: Any, **keywords: Any) -> None:
        if path.parent.parent.name == "pictures":
            if len(saved) == 2:
                raise KeyboardInterrupt
            saved.append(path)
        save_png(image, path, *args, **keywords)

    monkeypatch.setattr(drawing, "save_png", save_two)
    assert main([*words, str(stopped), "--part", "1/1"]) == 130
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in saved}
    capsys.readouterr()
    assert main([*words, str(stopped), "--part", "1/1", "--json"]) == 0
    assert last_line(capsys) == {"part": "1/1", "pictures": 6, "drawn": 4}
    assert {path: path.stat().st_mtime_ns for path in saved} == before
    assert pictures(stopped) == pictures(whole)
    assert [run.pictures for run in read_runs(stopped)] == [2, 4]


@pytest.mark.slow
def test_parts_of_several_machines_are_one_run(
    words: list[str],
    dino_folder: Path,
    bench_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, first, second, here = (tmp_path / name for name in ("w", "a", "b", "here"))
    assert main([*words, str(whole), "--dino", str(dino_folder), "--json"]) == 0
    want = last_line(capsys)
    assert main([*words, str(first), "--part", "1/2"]) == 0
    assert main([*words, str(second), "--part", "2/2", "--batch", "3"]) == 0
    score = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--score-only"]
    score += ["--dino", str(dino_folder), "-o", str(here), "--json"]
    assert main([*score, "--collect", str(first)]) == 2
    assert "6 of 12 pictures are missing, the first is" in capsys.readouterr().err
    assert main([*score, "--collect", str(first), "--collect", str(second)]) == 0
    found = last_line(capsys)
    assert pictures(here) == pictures(whole)
    same = ("scores", "subsets", "photographs", "copying", "subjects", "settings")
    assert {name: found[name] for name in same} == {name: want[name] for name in same}
    assert found["drawing"]["pictures"] == 12


def test_pictures_of_other_settings_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, str(tmp_path), "--part", "1/6"]) == 0
    changed = [("--steps", "3", "steps 2, this run has 3"), ("--seed", "1", "seed 0, this run")]
    changed += [("--references", "first", "references 'all', this run has 'first'")]
    for option, value, message in changed:
        assert main([*words, str(tmp_path), "--part", "1/6", option, value]) == 2
        assert message in capsys.readouterr().err


def test_pictures_of_other_photographs_are_not_scored(
    words: list[str],
    bench_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*words, str(tmp_path / "out"), "--part", "1/1", *FEW]) == 0
    Image.new("RGB", (64, 64), "green").save(bench_folder / "dataset" / "dog" / "00.png")
    score = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--score-only"]
    score += ["--dino", str(dino_folder), "-o", str(tmp_path / "out")]
    assert main(score) == 2
    assert "drawn from other photographs or prompts" in capsys.readouterr().err


def test_damaged_settings_and_none_are_told_apart(
    bench_folder: Path, dino_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--score-only"]
    score += ["--dino", str(dino_folder), "-o", str(tmp_path)]
    assert main(score) == 2
    assert "has no settings.json: nothing was drawn there" in capsys.readouterr().err
    (tmp_path / SETTINGS_FILE).write_text('{"steps": "many"}')
    assert main(score) == 2
    assert "settings.json is damaged" in capsys.readouterr().err


def test_references_are_the_first_or_all_that_the_pair_takes(
    words: list[str], tmp_path: Path
) -> None:
    for which, count in (("first", 1), ("all", 3)):
        out = tmp_path / which
        assert main([*words, str(out), "--part", "1/12", "--references", which]) == 0
        assert len(list((out / "references" / "dog2").iterdir())) == count
        parameters = read_parameters(out / "pictures" / "dog" / "00-0.png")
        assert parameters is not None
        assert parameters["num_references"] == min(count, 2)


def test_photographs_without_a_subject_are_taken_whole_and_told(
    words: list[str], bench_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photograph = bench_folder / "dataset" / "dog" / "00.png"
    Image.new("RGB", (64, 64), "green").save(photograph)
    with caplog.at_level(logging.WARNING, "bootpig_rt"):
        assert main([*words, str(tmp_path), "--part", "1/12"]) == 0
    assert "1 of 7 reference photographs are taken whole" in caplog.text
    settings = read_settings(tmp_path)
    assert settings is not None
    assert settings.taken_whole == ("dog/00.png",)


def test_a_damaged_picture_is_named_when_it_is_scored(
    words: list[str],
    bench_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*words, str(tmp_path), "--part", "1/1", *FEW]) == 0
    path = tmp_path / "pictures" / "vase" / "00-0.png"
    path.write_bytes(path.read_bytes()[:200])
    score = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--score-only"]
    assert main([*score, "--dino", str(dino_folder), "-o", str(tmp_path)]) == 2
    assert "vase/00-0.png' is damaged or cut short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "nothing to score with; give --clip and --dino"),
        (("--part", "3/2"), "--part is '3/2', expected K/N"),
        (("--part", "1/2", "--score-only"), "got --part and --score-only, expected one"),
        (("--efficientnet", "--masked"), "--masked needs to know where subjects are"),
        (("--efficientnet", "--renderer"), "--renderer is not for --suite dreambench"),
        (("--efficientnet", "--prompts", "26"), "--prompts is 26, expected 1..25"),
        (("--part", "1/1", "--remove-background", "magic"), "background remover is 'magic'"),
        (("--part", "1/1", "--subjects", "unicorn"), "subject 'unicorn' is not in"),
        (("--score-only", "--efficientnet", "--seeds", "2"), "--seeds is known from the folder's"),
        (("--part", "1/1", "--data", "nowhere"), "nowhere/prompts_and_classes.txt is missing"),
        (("--part", "1/1", "--collect", "nowhere"), "nowhere has no settings.json"),
        (("--dino", "nowhere"), "encoder nowhere does not exist"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    bench_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    base = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder)]
    assert main([*base, "-o", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


def test_its_options_are_refused_with_other_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--suite", "tiny", "--clip", "x"]) == 2
    assert "--clip is for --suite dreambench" in capsys.readouterr().err
