"""Captions: what is read from a line, what is refused and why, and what counts as the same."""

from __future__ import annotations

import numpy as np
import pytest

from bootpig_rt.training.bootstrap.parse import (
    NoCaption,
    ParsedCaption,
    normalised,
    parse_caption,
    split_answer,
)
from bootpig_rt.training.bootstrap.words import (
    POSITIONS,
    SCENES,
    THINGS,
    draw_general_caption,
    theme_of,
)


@pytest.mark.parametrize(
    ("line", "caption", "noun", "position", "scene"),
    [
        (
            "1. A photo of a red panda, sitting on a mossy log.",
            "a photo of a red panda, sitting on a mossy log",
            "red panda",
            "sitting on",
            "a mossy log",
        ),
        (
            '- "A photo of a Teapot, on the left side of a wooden table"',
            "a photo of a teapot, on the left side of a wooden table",
            "teapot",
            "on the left side of",
            "a wooden table",
        ),
        (
            "**A picture of an apple, floating gently in the middle of a lake**",
            "a photo of an apple, floating gently in the middle of a lake",
            "apple",
            "floating gently in the middle of",
            "a lake",
        ),
        (
            "a photo of ice cream, sunset beach",
            "a photo of ice cream, sunset beach",
            "ice cream",
            "",
            "sunset beach",
        ),
    ],
)
def test_a_caption_gives_object_position_and_scene(
    line: str, caption: str, noun: str, position: str, scene: str
) -> None:
    assert parse_caption(line, 18) == ParsedCaption(caption, noun, position, scene)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Sure! Here are 50 captions:", "nonsense"),
        ("A photo of a dog on a beach", "nonsense"),
        ("A drawing of a dog, on a beach", "nonsense"),
        ("A photo of a dog, on a be\x00ach", "nonsense"),
        ("A photo of 7 dogs, on a beach", "no_object"),
        ("A photo of the tower in a small snow globe, on a shelf", "no_object"),
        ("A photo of a dog, " + "very " * 13 + "far away", "too_long"),
        ("", "nonsense"),
        ("x" * 10_000_000, "nonsense"),
    ],
)
def test_what_is_no_caption_has_a_reason_and_a_short_detail(line: str, reason: str) -> None:
    parsed = parse_caption(line, 18)
    assert isinstance(parsed, NoCaption)
    assert parsed.reason == reason
    assert len(parsed.detail) < 250


def test_captions_have_fewer_words_than_the_limit() -> None:
    line = "a photo of a dog, on " + " ".join(["x"] * 11)
    assert isinstance(parse_caption(line, 18), ParsedCaption)
    assert isinstance(parse_caption(f"{line} x", 18), NoCaption)


def test_answers_are_lines_or_a_list_in_json_without_thoughts_and_fences() -> None:
    assert split_answer("<think>I\nthink</think>\n```text\nA\n\nB\n```") == ["A", "B"]
    assert split_answer('["a photo", "b"]') == ["a photo", "b"]
    assert split_answer('{"a": 1}') == ['{"a": 1}']
    assert split_answer("  \n ") == []


def test_case_punctuation_and_articles_make_no_other_caption() -> None:
    one = normalised("A photo of a Dog, on the beach!")
    assert one == normalised("a photo of the dog on a beach")
    assert one != normalised("a photo of a dog, on the bench")


def test_the_grammar_writes_captions_that_are_read_back_as_they_are() -> None:
    rng = np.random.default_rng(0)
    captions = {draw_general_caption(rng) for _ in range(500)}
    for caption in captions:
        parsed = parse_caption(caption, 18)
        assert isinstance(parsed, ParsedCaption), caption
        assert parsed.text == caption
        assert parsed.position in POSITIONS
        assert parsed.scene in SCENES
    assert len(captions) > 480


def test_no_thing_position_or_scene_is_listed_twice() -> None:
    things = [thing for theme in THINGS.values() for thing in theme]
    for names in (things, POSITIONS, SCENES):
        assert len(set(names)) == len(names)
    assert {theme_of(ask) for ask in range(len(THINGS))} == set(THINGS)
