"""The list of models: each is used or says why not, and what is held out is held out everywhere."""

from __future__ import annotations

import csv
import re
from collections import Counter

import numpy as np
import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.captions import class_prompt
from bootpig_rt.training.render.patterns import COLOURS, MATERIALS, PATTERNS
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.world3d.captions import SIZE_WORDS, SIZES, WorldCaption, draw_placement
from bootpig_rt.training.world3d.catalogue import MODELS_FILE, load_catalogue
from bootpig_rt.training.world3d.config import load_world_config
from bootpig_rt.training.world3d.identities import NamedLook, draw_look, is_held_out_noun
from bootpig_rt.training.world3d.scenes import (
    HELD_OUT_SCENES,
    WORLD_SCENES,
    held_out_combination,
)
from bootpig_rt.training.world3d.sources import load_model_sources


def test_every_model_has_a_name_and_a_split_or_says_why_it_is_left_out() -> None:
    sources = {source.key: source for source in load_model_sources()}
    with MODELS_FILE.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({(row["source"], row["path"]) for row in rows}) == len(rows)
    for row in rows:
        assert sources[row["source"]].takes(row["path"]), row
        assert bool(row["noun"]) == bool(row["split"]) == (not row["left_out"]), row
        assert re.fullmatch(r"[a-z' -]*", row["noun"]), row


def test_a_class_that_is_held_out_is_in_no_other_split_and_in_no_kind() -> None:
    splits = Counter((model.noun, model.split) for model in load_catalogue())
    held_out = {noun for noun, split in splits if split == "held_out_concept"}
    assert len(held_out) > 40
    for noun, split in splits:
        assert (split == "held_out_concept") == (noun in held_out), noun
        assert (split == "held_out_concept") == is_held_out_noun(noun), noun
    assert all(is_held_out_noun(c.replace("-", " ")) for c in load_splits().concepts)
    # An identity that is held out has others of its class to learn the word from.
    for noun, split in splits:
        if split == "held_out_identity":
            assert splits[(noun, "train")] > 0, noun


def test_held_out_scenes_have_words_that_other_scenes_teach() -> None:
    assert len(HELD_OUT_SCENES) == 2
    known = {
        word
        for scene in WORLD_SCENES.values()
        if scene.key not in HELD_OUT_SCENES
        for phrase in scene.phrases
        for word in phrase.split()
    }
    unknown = {
        word
        for key in HELD_OUT_SCENES
        for phrase in WORLD_SCENES[key].phrases
        for word in phrase.split()
    } - known
    assert unknown <= {"misty", "mist"}


def test_combinations_are_held_out_over_all_scenes() -> None:
    nouns = {model.noun for model in load_catalogue()}
    counts = Counter(held_out_combination(noun) for noun in nouns)
    assert not set(counts) & HELD_OUT_SCENES
    assert len(counts) == len(WORLD_SCENES) - 2
    assert max(counts.values()) < 0.06 * len(nouns)


def test_looks_have_names_that_say_all_of_them_and_some_are_held_out() -> None:
    rng = np.random.default_rng(0)
    looks = {draw_look(rng) for _ in range(3000)}
    assert len({look.name for look in looks}) == len(looks)
    assert {look.pattern for look in looks if look.pattern} == set(PATTERNS)
    assert {look.material for look in looks if look.material} == set(MATERIALS)
    assert {look.first for look in looks if look.first} == set(COLOURS)
    held_out = np.mean([look.is_held_out for look in looks])
    assert 0.05 < held_out < 0.12
    assert NamedLook("striped", "red", "white").name == "striped red and white"


def test_a_caption_says_size_place_and_scene_after_the_reference_prompt() -> None:
    caption = WorldCaption("anvil", "left", "small", "beach", "a sandy beach")
    assert caption.text == "a photo of an anvil, small on the left of a sandy beach"
    assert caption.reference_prompt == class_prompt("anvil")
    assert set(SIZE_WORDS) == set(SIZES)


def test_placements_are_drawn_as_often_as_they_are_meant() -> None:
    rng = np.random.default_rng(1)
    drawn = Counter(
        draw_placement(rng, size_weights=(1, 2, 1, 0), side_share=0.25) for _ in range(4000)
    )
    assert ("centre", "close") not in drawn
    assert not {("left", "large"), ("right", "large")} & set(drawn)
    assert drawn[("left", "small")] / 4000 == pytest.approx(0.25 * 0.25, abs=0.02)
    assert drawn[("centre", "normal")] / 4000 == pytest.approx(0.5 * 0.5, abs=0.03)


def test_the_file_of_settings_says_the_defaults() -> None:
    assert load_world_config(None, []) == load_world_config(None, ["size_px=128"])
    assert load_world_config(None, ["scenes.drawn=1"]).scenes.drawn == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size_px=4", "size_px"),
        ("side_share=0.6", "side_share"),
        ("colour=red", "unknown field"),
        ('without_scenes=["moon"]', "names 'moon'"),
        ("reference_counts=[0, 0, 0, 0]", "are all 0"),
        ("scenes.panorama=-1", "panorama"),
        (
            f"without_scenes={[k for k, s in WORLD_SCENES.items() if s.kind == 'ground']}",
            "leaves no ground scene",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_world_config(None, [override])
