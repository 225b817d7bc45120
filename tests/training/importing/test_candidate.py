"""Roles of a command line, and nouns of captions."""

from __future__ import annotations

import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.importing.candidate import parse_roles, subject_of


def test_roles_are_read() -> None:
    assert parse_roles(["target=jpg", "caption=json:a.b"]) == {
        "target": "jpg",
        "caption": "json:a.b",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["picture=jpg"], "expected ROLE=NAME with one of: target, mask"),
        (["target"], "--map is 'target', expected ROLE=NAME"),
        (["target="], "--map is 'target=', expected"),
        (["target=a", "target=b"], "--map target is given twice"),
    ],
)
def test_words_that_are_no_roles_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_roles(words)


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("A photo of a red panda, in a park", "red panda"),
        ("a photo of an apple", "apple"),
        ("The old clock.", "old clock"),
        ("dog, on a beach", "dog"),
        ("It sits on a wooden table while the sun sets behind the hills", ""),
        ("", ""),
    ],
)
def test_the_subject_of_a_caption_is_what_stands_before_the_comma(
    caption: str, subject: str
) -> None:
    assert subject_of(caption) == subject
