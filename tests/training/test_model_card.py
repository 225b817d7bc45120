"""The model card: what is in it, who adds to it, and what may not be touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError
from bootpig_rt.training import bias_panel
from bootpig_rt.training.bias_panel import knows_people
from bootpig_rt.training.model_card import (
    CARD_FILE,
    FACTS_FILE,
    PANEL_FILE,
    add_scores,
    dreambench_rows,
    small_rows,
    write_card,
)

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = {"value": 0.5, "low": 0.25, "high": 0.75, "subjects": 4, "pictures": 8}


@pytest.fixture
def pair(pair_result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair_result, tmp_path / "pair"))


def test_a_trained_pair_has_a_card_with_its_settings_data_and_start(pair_result: Path) -> None:
    card = (pair_result / CARD_FILE).read_text()
    config = json.loads((pair_result / "provenance.json").read_text())["config"]
    assert card.startswith("---\nlibrary_name: bootpig-rt\n")
    assert "\n---\n\n# Model card: " in card
    assert f"| pair | {config['steps']} | {config['batch_size']} | {config['seed']} |" in card
    assert "| base | 2 | 2 | 5 |" in card
    assert "| vae | 4 | 2 | 5 |" in card
    assert "24 samples in `samples`" in card
    assert "guidance is 3 for the image" in card
    assert "exact or clean" in card


def test_a_card_has_no_path_of_the_machine(pair_result: Path) -> None:
    card = (pair_result / CARD_FILE).read_text()
    assert str(pair_result.parent) not in card
    assert "/" not in card.partition("## Data")[2].partition("## Licences")[0]


def test_what_nobody_stated_is_said_with_the_command_that_states_it(pair: Path) -> None:
    card = (pair / CARD_FILE).read_text()
    assert card.count("not stated: `bootpig-rt model-card FOLDER --") == 3
    assert "Not evaluated: `bootpig-rt evaluate" in card
    assert main(["model-card", str(pair), "--base-licence", "OpenRAIL++-M"]) == 0
    card = (pair / CARD_FILE).read_text()
    assert "- Of its base: OpenRAIL++-M." in card
    assert card.count("not stated") == 2


def test_scores_are_added_by_suite_and_the_rest_of_the_card_stays(pair: Path) -> None:
    before = (pair / CARD_FILE).read_text()
    assert add_scores(pair, "Suite one", [("identity", "0.1")])
    assert add_scores(pair, "Suite one", [("identity", "0.2")])
    assert add_scores(pair, "Suite two", [("scene", "0.9")])
    card = (pair / CARD_FILE).read_text()
    assert "| identity | 0.2 |" in card
    assert "| identity | 0.1 |" not in card
    assert "| scene | 0.9 |" in card
    start, _, rest = before.partition("Not evaluated")
    assert card.startswith(start)
    assert card.endswith(rest.partition("\n")[2])


def test_a_report_of_the_small_world_becomes_rows_without_those_that_are_empty() -> None:
    part = {
        "chance": 0.2,
        "identity": {"pixels": RATE},
        "scene": RATE,
        "fidelity": {"psnr_db": None},
    }
    report = {
        "main_judge": "pixels",
        "groups": {"identities": part},
        "controls": {"wrong_reference": part, "no_reference": part},
    }
    assert small_rows(report) == [
        ("held-out identities: identity (pixels; chance 0.20)", "0.500 (0.250 to 0.750)"),
        ("held-out identities: scene", "0.500 (0.250 to 0.750)"),
        ("wrong reference: own identity", "0.500 (0.250 to 0.750)"),
        ("no reference: own identity", "0.500 (0.250 to 0.750)"),
    ]


def test_a_report_of_dreambench_says_whether_it_may_stand_beside_published_ones() -> None:
    report = {
        "num_subjects": 30,
        "num_prompts": 25,
        "pictures_per_prompt": 4,
        "scores": {"dino": RATE, "clip_i": None},
        "is_comparable": True,
    }
    assert dreambench_rows(report) == [
        ("subjects, prompts of each, pictures of a prompt", "30, 25, 4"),
        ("dino", "0.500 (0.250 to 0.750)"),
        ("may stand beside published scores", "yes"),
    ]


def test_what_train_did_not_make_gets_no_scores_and_a_bundle_no_card(
    pair: Path, tmp_path: Path
) -> None:
    (pair / "provenance.json").rename(tmp_path / "provenance.json")
    before = (pair / CARD_FILE).read_bytes()
    assert not add_scores(pair, "Suite", [("a", "1")])
    assert (pair / CARD_FILE).read_bytes() == before
    (tmp_path / "provenance.json").rename(pair / "provenance.json")
    (pair / "manifest.json").write_text("{}")
    assert not add_scores(pair, "Suite", [("a", "1")])
    with pytest.raises(CheckpointError, match="is a bundle, whose files are sealed"):
        write_card(pair)
    assert main(["model-card", str(pair), "--panel"]) == 2
    assert not (pair / FACTS_FILE).exists()


def test_a_world_without_people_has_no_panel_and_says_so(pair: Path) -> None:
    assert not knows_people(pair)
    assert main(["model-card", str(pair), "--panel"]) == 0
    assert "people and professions: not applicable" in (pair / CARD_FILE).read_text()
    assert not (pair / PANEL_FILE).exists()


def test_a_base_that_knows_people_gets_a_grid_with_its_prompts_and_seed(
    pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = json.loads((pair / "tokenizer" / "vocab.json").read_text())
    words = ("doctor", "nurse")
    monkeypatch.setattr(bias_panel, "WORDS", words)
    monkeypatch.setattr(bias_panel, "COLUMNS", 3)
    names = list(vocabulary)
    for place, word in enumerate(words):  # two words that nothing is merged from any more
        vocabulary[f"{word}</w>"] = vocabulary.pop(names[-3 - place])
    (pair / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    merges = (pair / "tokenizer" / "merges.txt").read_text().splitlines()[:1]
    (pair / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n")
    arguments = ["model-card", str(pair), "--panel", "--backend", "torch", "--json"]
    assert main(arguments) == 0
    panel: dict[str, Any] = json.loads(capsys.readouterr().out)["panel"]
    prompts = ["a photo of a doctor", "a photo of a nurse"]
    assert panel == {"applies": True, "prompts": prompts, "columns": 3, "seed": 0}
    with Image.open(pair / PANEL_FILE) as image:
        side = json.loads((pair / "pair.json").read_text())["sample_size_px"]
        assert image.size == (3 * side + 4, 2 * side + 2)
    card = (pair / CARD_FILE).read_text()
    assert f"]({PANEL_FILE})" in card
    assert "a photo of a doctor; a photo of a nurse" in card
