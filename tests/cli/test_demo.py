from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.cli.demo import SCENES, read_subjects
from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError
from bootpig_rt.images.picture import read_parameters
from bootpig_rt.training.captions import POSITIONS
from bootpig_rt.training.scenes import SCENES as TRAINED_SCENES


@pytest.fixture
def subjects_folder(tmp_path: Path, red: Image.Image, blue: Image.Image) -> Path:
    folder = tmp_path / "subjects"
    folder.mkdir()
    red.save(folder / "dog.png")
    blue.save(folder / "cat.png")
    entries = [
        {"file": "dog.png", "prompt_class": "a photo of a dog", "noun": "dog", "style": "flat"},
        {"file": "cat.png", "prompt_class": "a photo of a cat"},
    ]
    (folder / "subjects.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def demo(tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `bootpig-rt demo` with the tiny pair in a folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: str) -> int:
        model = ["--model", str(tiny_pair_folder), "--device", "cpu", "--steps", "1"]
        return main(["demo", *model, *words])

    return run


def test_the_sheet_has_a_row_for_each_subject_and_at_least_four_prompts(
    demo: Any, subjects_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo("--subjects", str(subjects_folder)) == 0
    assert len(SCENES) >= 4
    pictures = read_parameters("demo.png")["pictures"]
    assert [p["prompt"] for p in pictures] == [
        f"{start}, {scene}"
        for start in ("a photo of a dog", "a photo of a cat")
        for scene in SCENES
    ]
    assert {p["reference_prompt"] for p in pictures} == {"a photo of a dog", "a photo of a cat"}
    with Image.open("demo.png") as sheet:
        assert sheet.width > (len(SCENES) + 1) * 160
        assert 2 * 160 < sheet.height < 3 * 160 + 100
    assert f"{Path.cwd() / 'demo.png'}: 2 subjects in 4 scenes" in capsys.readouterr().out


def test_rows_and_json_are_as_asked(
    demo: Any, subjects_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--subjects", str(subjects_folder), "--rows", "1", "--seed", "3", "--json"]
    assert demo(*words, "-o", "sheet.png") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["output"] == "sheet.png"
    assert [p["seed"] for p in summary["pictures"]] == [3 + i for i in range(len(SCENES))]


def test_the_demo_asks_for_scenes_that_were_trained() -> None:
    phrases = {phrase for scene in TRAINED_SCENES.values() for phrase in scene.phrases}
    for scene in SCENES:
        assert any(
            scene == f"{position} {phrase}" for position in POSITIONS.values() for phrase in phrases
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .* install the package again"),
        ("{", "is not a list of objects"),
        ("[1]", "is not a list of objects"),
        ('[{"file": "dog.png"}]', "KeyError: 'prompt_class'"),
        ("[]", "lists no subject"),
    ],
)
def test_a_broken_list_of_subjects_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "subjects.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_subjects(str(tmp_path))


def test_no_rows_are_refused(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("--rows", "0") == 2
    assert "--rows is 0, expected at least 1" in capsys.readouterr().err
