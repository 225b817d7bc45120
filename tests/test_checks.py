"""What a user may give as a prompt; numbers and names are checked where they are used."""

from __future__ import annotations

from typing import Any

import pytest

from bootpig_rt.checks import check_int, check_prompt
from bootpig_rt.errors import ParameterError, PromptError, one_line, shown


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (None, "prompt is missing"),
        (3, "prompt is of type int"),
        (b"a dog", "prompt is of type bytes"),
        (["a dog"], "prompt is of type list"),
        ("a\0dog", "NUL or a lone surrogate"),
        ("a \ud83d dog", "NUL or a lone surrogate"),
        ("x" * 32_000, "has 32000 characters, expected at most 10000; shorten it"),
        (" ", "prompt is empty"),
    ],
)
def test_what_is_no_text_is_refused(prompt: Any, expected: str) -> None:
    with pytest.raises(PromptError, match=expected):
        check_prompt(prompt)


def test_white_space_around_a_prompt_is_nothing() -> None:
    assert check_prompt(" a dog\n") == "a dog"
    assert check_prompt(" ", "negative_prompt", allow_empty=True) == ""


def test_values_of_anybody_fit_a_message() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    assert shown("a") == "'a'"
    assert shown(1 << 100_000) == "int of thousands of digits"
    assert shown(nested) == "list that is nested deeply"
    assert len(shown("a" * 999)) == 100
    assert one_line("a\nb\x1b[31m\ud800") == "a b [31m "
    assert one_line("a" * 300) == "a" * 300
    assert one_line("a" * 301) == "a" * 297 + "..."
    with pytest.raises(ParameterError, match="n is int of thousands of digits, expected 1..3"):
        check_int("n", 1 << 100_000, 1, 3)
