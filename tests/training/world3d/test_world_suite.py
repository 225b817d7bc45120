"""The evaluation in the 3-D world: who is drawn, and judges that know the renderer's pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError
from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
from bootpig_rt.training.evaluation.suite import Shot
from bootpig_rt.training.evaluation.world.evaluate import (
    WorldRenderer,
    evaluate_world,
    save_sheets,
    summary,
    text_table,
    world_rows,
)
from bootpig_rt.training.evaluation.world.judges import (
    WorldJudges,
    detail,
    in_grey,
    nearest_position,
    nearness,
)
from bootpig_rt.training.evaluation.world.suite import (
    WorldSuiteConfig,
    choose_world_subjects,
    reference_views,
    world_digest,
    world_shots,
)
from bootpig_rt.training.world3d import identities
from bootpig_rt.training.world3d.catalogue import Model
from bootpig_rt.training.world3d.identities import load_identities
from bootpig_rt.training.world3d.studio import Studio

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 48
CONFIG = WorldSuiteConfig(
    "test", 1, 1, 0, prompts=2, seeds=2, candidates=3, control_prompts=1, counts=(1, 2),
    kinds=("drawn",), views=3,
)  # fmt: skip
MODELS = (
    Model("boxes", "crate.glb", "crate", "train"),
    Model("boxes", "held.glb", "crate", "held_out_identity"),
    Model("boxes", "anvil.glb", "anvil", "held_out_concept"),
    Model("boxes", "bin.glb", "bin", "train"),
)


@pytest.fixture(scope="module")
def world(world_folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "load_catalogue", lambda: MODELS)
        studio = Studio(world_folder, SIZE)
        yield world_folder, studio, choose_world_subjects(world_folder, studio, CONFIG)


@pytest.fixture(scope="module")
def judges(world: Any, tmp_path_factory: pytest.TempPathFactory) -> WorldJudges:
    folder, studio, subjects = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bootpig_rt.training.evaluation.world.judges.SCENE_PICTURES", 16)
        patch.setattr("bootpig_rt.training.evaluation.world.judges.FINE_VIEWS", 6)
        return WorldJudges(
            subjects,
            CONFIG,
            studio,
            training=load_identities(folder, "train", with_drawings=True),
            network=load_efficientnet(),
            cache=tmp_path_factory.mktemp("judges"),
            digest=world_digest(subjects, CONFIG, SIZE),
        )


def test_look_alikes_have_the_noun_and_other_colours(world: Any) -> None:
    crate, anvil = world[2]
    assert [one.group for one in (crate, anvil)] == ["models", "nouns"]
    assert crate.candidates[0].identity.key == "boxes/held.glb"
    assert crate.candidates[1].identity.key == "boxes/crate.glb"  # another crate,
    assert crate.candidates[2].hue_deg == 180  # and itself in another colour
    looks = [one.named for one in anvil.candidates]
    assert None not in looks  # it has no colours of its own
    assert len(set(looks)) == 3
    assert {crate.wrong, anvil.wrong} <= {1, 2}
    assert all(caption.text.startswith("a photo of a crate, ") for caption in crate.captions)
    assert len({caption.scene for caption in crate.captions}) == 2


def test_too_few_subjects_are_told(world: Any) -> None:
    with pytest.raises(ConfigError, match="wants 3 held-out models of different nouns, .* has 1"):
        choose_world_subjects(world[0], world[1], replace(CONFIG, models=3))


def test_references_are_cut_out_and_begin_alike(world: Any) -> None:
    _, studio, (crate, _) = world
    one, two = (reference_views(crate, 0, count, studio) for count in (1, 2))
    assert [len(one), len(two)] == [1, 2]
    first, again, other = (np.asarray(picture) for picture in (one[0], *two))
    assert np.array_equal(first, again)
    assert not np.array_equal(again, other)
    alpha = other[..., 3]
    assert alpha.min() == 0
    assert alpha.max() == 255


def test_controls_have_the_prompts_of_the_main_pictures(world: Any) -> None:
    plan = world_shots(world[2], CONFIG)
    assert {arm: len(shots) for arm, shots in plan.items()} == {
        "main": 8, "wrong_reference": 2, "no_reference": 2, "references_2": 2, "renderer": 2,
    }  # fmt: skip
    assert plan["references_2"][0] == Shot(0, 0, 0, "own", 2)


def test_a_picture_is_nearest_to_the_candidate_with_a_view_like_it() -> None:
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(3, 4, 20)).astype(np.float32)
    query = bank[2, 1] + 0.1 * rng.normal(size=20).astype(np.float32)
    assert nearness(bank, query).argmax() == 2


def test_in_grey_hues_are_one_and_outlines_are_not(world: Any) -> None:
    colours = np.array([[[200, 10, 40], [0, 255, 0]]], np.uint8)
    grey = in_grey(colours)
    assert grey.shape == colours.shape
    assert (grey == grey[..., :1]).all()
    assert grey[0, :, 0].tolist() == [70, 150]
    for subject in world[2]:
        own = [subject.candidates[n] for n in subject.own_in_grey]
        others = [one for one in subject.candidates if one not in own]
        assert own[0] is subject.candidates[0]
        assert len({(one.identity.key, one.named) for one in own}) == 1
        assert all(
            (one.identity.key, one.named) != (own[0].identity.key, own[0].named) for one in others
        )


def test_places_have_words_and_flat_pictures_no_detail() -> None:
    assert [nearest_position(x) for x in (0.1, 0.45, 0.8)] == ["left", "centre", "right"]
    assert detail(np.full((16, 16, 3), 90, np.uint8)) == pytest.approx(0, abs=1e-9)
    checks = np.indices((16, 16)).sum(0) % 2 * 200
    assert detail(np.repeat(checks[..., None], 3, 2).astype(np.uint8)) == pytest.approx(
        100, rel=0.01
    )


@pytest.mark.slow
def test_the_renderers_own_pictures_are_named_and_a_wrong_reference_is_told_from_them(
    world: Any, judges: WorldJudges, tmp_path: Path
) -> None:
    _, studio, subjects = world
    drawer = WorldRenderer(subjects, CONFIG, studio)
    report, arms = evaluate_world(drawer, judges, subjects, CONFIG, studio, studio, output=tmp_path)
    assert report["all"]["identity"]["value"] >= 0.75
    assert report["all"]["scene"]["value"] >= 0.75
    assert report["all"]["position"]["value"] >= 0.75
    wrong = report["arms"]["wrong_reference"]
    assert wrong["identity_of_the_given_reference"]["value"] > wrong["identity"]["value"]
    assert report["all"]["psnr_db"]["value"] > wrong["psnr_db"]["value"] + 1
    pasted, drawn = (report["copy_paste"][name] for name in ("paste", "renderer"))
    assert pasted["score"]["value"] > 0.9
    assert pasted["gap"]["value"] > drawn["gap"]["value"]
    assert summary(arms["main"], subjects, [0]) == report["groups"]["models"]
    assert "held-out nouns" in text_table(json.loads(json.dumps(report)))
    assert any("chance 0.33" in name for name, _ in world_rows(report))
    sheets = save_sheets(arms, subjects, studio, tmp_path / "sheets")
    assert len(sheets) == 5
    again, _ = evaluate_world(
        drawer, judges, subjects, CONFIG, studio, studio, output=tmp_path, resume=True
    )
    assert again == report


@pytest.mark.slow
def test_the_command_judges_a_pair(
    world: Any, tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "load_catalogue", lambda: MODELS)
    monkeypatch.setattr(
        "bootpig_rt.training.evaluation.world.suite.WORLD_SUITES", {"world": CONFIG}
    )
    words = ["evaluate", "--suite", "world", "--model", str(tiny_pair_folder), "--steps", "1"]
    words += ["--data", str(world[0]), "-o", str(tmp_path / "out"), "--seeds", "1"]
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pair"]["name"] == "tiny"
    assert report["diversity"] is None
