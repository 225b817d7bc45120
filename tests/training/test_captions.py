"""Captions: their form, and that they never tell what only the reference may tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bootpig_rt.training.captions import POSITIONS, Caption, class_prompt, draw_caption
from bootpig_rt.training.compose import Sample, WorldConfig, draw_sample
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.shards import read_samples
from bootpig_rt.training.synthesize import Subjects

COLOURS = frozenset(
    "black blue brown cyan dark gold golden gray green grey light magenta orange pink purple red "
    "silver violet white yellow".split()
)


def test_a_caption_has_the_published_form() -> None:
    caption = Caption("apple", "centre", "beach", "a sandy beach")
    assert caption.text == "a photo of an apple, in the middle of a sandy beach"
    assert caption.reference_prompt == "a photo of an apple"


@pytest.mark.parametrize(
    ("noun", "prompt"), [("dog", "a photo of a dog"), ("Owl", "a photo of an Owl")]
)
def test_the_article_fits_the_noun(noun: str, prompt: str) -> None:
    assert class_prompt(noun) == prompt


def test_the_reference_prompt_is_the_caption_up_to_its_first_comma() -> None:
    rng = np.random.default_rng(1)
    for noun in ("dog", "ice cream") * 50:
        caption = draw_caption(rng, noun)
        assert caption.text.split(",")[0] == caption.reference_prompt == class_prompt(noun)


def test_a_phrase_names_one_scene_only() -> None:
    phrases = [phrase for scene in SCENES.values() for phrase in scene.phrases]
    assert len(set(phrases)) == len(phrases)


def test_scenes_are_drawn_equally_often_and_both_sides_too() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_caption(rng, "dog") for _ in range(1600)]
    scenes = [sum(c.scene == key for c in drawn) for key in SCENES]
    positions = {key: sum(c.position == key for c in drawn) for key in POSITIONS}
    assert min(scenes) > 60
    assert max(scenes) < 150
    assert min(positions.values()) > 100
    assert abs(positions["left"] - positions["right"]) < 100
    assert {c.scene_phrase for c in drawn} == {p for s in SCENES.values() for p in s.phrases}


def test_the_caption_does_not_depend_on_how_the_subject_looks(subjects: Subjects) -> None:
    world = WorldConfig(size_px=16)
    captions = []
    for row in (0, 1):  # the same thing in two styles, from the same random numbers
        sample = draw_sample(np.random.default_rng(8), subjects.sprites[row], "dog", world)
        assert isinstance(sample, Sample)
        captions.append(sample.caption)
    assert captions[0] == captions[1]


def test_no_caption_says_style_or_colour_of_its_subject(
    samples: object, subjects: Subjects
) -> None:
    words = COLOURS.union(subjects.styles)
    for sample in read_samples(samples):  # type: ignore[arg-type]
        phrases = SCENES[sample.record["scene"]].phrases
        (phrase,) = [p for p in phrases if sample.caption.endswith(f" {p}")]
        about_subject = sample.caption.removesuffix(phrase).replace(",", "").split()
        assert words.isdisjoint(about_subject)
        assert words.isdisjoint(sample.reference_prompt.split())
        noun = sample.record["concept"].replace("-", " ")
        position = sample.record["position"]
        rebuilt = Caption(noun, position, sample.record["scene"], phrase)
        assert rebuilt.text == sample.caption
        assert dataclasses.asdict(rebuilt)["noun"] in subjects.nouns
